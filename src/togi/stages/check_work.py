"""The preflight of `togi check`: data read, templates held against tokenizers, one sample shown token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.records import Chat, Document, Message, Pair, Prompt, Record
from togi.core.sources import ModelSource
from togi.model.load import load_tokenizer
from togi.rewards.function import load_function
from togi.rewards.settings import FunctionTerm
from togi.stages.imported import Import
from togi.stages.imported_work import read
from togi.stages.train_grpo import TrainGrpo
from togi.text.render import check_template, render_chat, render_text

SHOWN = 160  # characters of the first record
DEMO = (Message("user", "What is the capital of France?"), Message("assistant", "Paris."))


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a rendered conversation: its text, its id, and whether it carries loss."""

    text: str
    id: int
    scored: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """A model's template at work: how many tokens the terminator has, and a conversation token by token."""

    template: str
    terminator: str
    terminator_ids: tuple[int, ...]
    tokens: tuple[Token, ...]


def preview(source: ModelSource, cache: Path, kind: str = "causal") -> Preview:
    """Renders a short conversation as the trainer and the sampler will see it, or as a reward model reads it.

    `kind` is that of the recipe's entry. Raises InputError and RecipeError for a model without tokenizer, a model of
    the other kind, or a template that does not fit it.
    """
    tokenizer, template = load_tokenizer(source, cache, "scorer" if kind == "reward" else kind)
    found = check_template(template, tokenizer)
    if kind == "reward":
        ids = render_text(template, tokenizer, DEMO)
        mask: Sequence[bool] = (False,) * len(ids)
    else:
        rendered = render_chat(template, tokenizer, DEMO)
        ids, mask = list(rendered.ids), rendered.mask
    tokens = tuple(
        Token(tokenizer.decode([i], skip_special_tokens=False), i, scored) for i, scored in zip(ids, mask, strict=True)
    )
    return Preview(template.name, template.terminator, found.terminator, tokens)


def check_functions(settings: Any) -> list[str]:
    """Loads the reward functions that a stage names, and says which. Raises InputError for one that is not there."""
    if not isinstance(settings, TrainGrpo):
        return []
    terms = [term for term in settings.reward.terms if isinstance(term, FunctionTerm)]
    for term in terms:
        load_function(Path(term.file), term.name, term.style)
    return [term.name for term in terms]


@dataclass(frozen=True, slots=True)
class DataCheck:
    """How many rows fit, how many were dropped and why, the first record, and what else to know of the import."""

    kind: str
    records: int
    drops: dict[str, int]
    first: str
    notes: tuple[str, ...] = ()


def check_data(settings: Import) -> DataCheck:
    """Reads all rows of a data set. Raises InputError for the first that does not fit."""
    imported = read(settings)
    drops: dict[str, int] = {}
    for drop in imported.drops:
        drops[drop.reason] = drops.get(drop.reason, 0) + 1
    return DataCheck(settings.kind, len(imported.records), drops, _first(imported.records), tuple(imported.notes))


def _first(records: Sequence[Record]) -> str:
    """The first record on one line; of a pair, what was chosen."""
    record = records[0]
    if isinstance(record, Chat):
        text = " / ".join(f"{message.role}: {message.content}" for message in record.messages)
    elif isinstance(record, Pair):
        text = record.chosen[-1].content
    else:
        text = record.text if isinstance(record, Prompt | Document) else str(record)
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} …"
