"""Rehearsals: prepare the rows of stages as a run does, but without weights, for `togi check`.

A stage's work module may have `rehearse(settings, context)`. It yields rows as `run` renders, truncates and masks them,
and raises the errors that `run` would raise for them; with `weightless`, also ServerRenders. A stage that loads no
model needs none. `preflight(settings)`, if there is one, raises errors that need no records.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Message, Prompt
from togi.core.settings import Ref
from togi.core.sources import ModelSource
from togi.model.forest import Sequence as TokenSequence
from togi.model.inspect import context_of
from togi.model.load import LoadedModel, inspect, load_tokenizer
from togi.model.network import read_config
from togi.stages.base import StageType
from togi.stages.context import Context
from togi.stages.readers_work import read_words
from togi.stages.refused import refused
from togi.stages.training.examples_work import Data, Example
from togi.text.render import check_template, render_prompt


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The sequences that a stage makes from one record for `model`: two for a pair, otherwise one. `more` is the most
    tokens that the model will generate after them."""

    id: str
    model: LoadedModel
    sides: tuple[TokenSequence, ...]
    more: int = 0

    @property
    def length(self) -> int:
        """The length of the longest sequence in tokens, including `more`."""
        return max(len(side.ids) for side in self.sides) + self.more


class ServerRenders(Exception):
    """The rows for a model cannot be rendered here: its server renders them, and the recipe names no tokenizer."""


@dataclass(frozen=True, slots=True)
class Weightless:
    """Stands in for a network when only its configuration is read."""

    config: Any


def weightless(context: Context, ref: Ref) -> LoadedModel:
    """A model without its network; for a model on a server, with the tokenizer that the recipe names. Raises InputError
    and RecipeError as loading does, except for weights, and ServerRenders for a model on a server without a
    tokenizer."""
    source = context.model(ref)
    if source.kind == "endpoint" and not source.tokenizer:
        raise ServerRenders
    if source.kind == "endpoint":
        words, template = read_words(source, context.cache, "causal")
        net = Weightless(_Stated(context.contexts.get(ref.name)))
        return LoadedModel(net=net, tokenizer=words, template=template, name=source.name)
    return read_weightless(source, context.cache)


@dataclass(frozen=True, slots=True)
class _Stated:
    """Stands in for the configuration of a model of which at most the context length is known."""

    context: int | None

    def get_text_config(self) -> "_Stated":
        return self

    def to_dict(self) -> dict[str, Any]:
        return {} if self.context is None else {"max_position_embeddings": self.context}


@lru_cache(maxsize=8)
def read_weightless(source: ModelSource, cache: Path, kind: str = "causal") -> LoadedModel:
    """A model of `kind` (causal, scorer) without its network; checks that its template fits its tokenizer. Cached."""
    tokenizer, template = load_tokenizer(source, cache, kind)
    check_template(template, tokenizer)
    facts = inspect(source, cache, weights=False)
    net = Weightless(read_config(facts.folder))
    return LoadedModel(net=net, tokenizer=tokenizer, template=template, name=source.name)


def context_limit(model: LoadedModel) -> int | None:
    """The longest sequence, in tokens; None if the model does not specify it."""
    return context_of(model.net.config.get_text_config().to_dict())


def rehearsal(stage: StageType) -> Callable[[Any, Context], Iterable[Rehearsed]] | None:
    """The `rehearse` function of a stage; None for a stage that renders no rows."""
    return getattr(importlib.import_module(stage.work), "rehearse", None)


def preflight(stage: StageType) -> Callable[[Any], None]:
    """The `preflight` function of a stage; one that does nothing for a stage without any."""
    found: Callable[[Any], None] | None = getattr(importlib.import_module(stage.work), "preflight", None)
    return found or (lambda settings: None)


def data_rows(context: Context, model: LoadedModel, data: Data) -> list[Rehearsed]:
    """The examples of a training stage as rows; its warnings become alarms, as at the start of training."""
    for name, message in data.warnings:
        context.alarm(name, message)
    return example_rows(model, chain(data.training, data.validation))


def example_rows(model: LoadedModel, examples: Iterable[Example]) -> list[Rehearsed]:
    """Training examples as rows."""
    return [Rehearsed(example.id, model, example.group) for example in examples]


def prompt_rows(
    context: Context,
    model: LoadedModel,
    prompts: Iterable[tuple[str, Sequence[Message]]],
    max_tokens: int,
    overlong: Callable[[str], None] | None = None,
) -> Iterator[Rehearsed]:
    """Prompts, with their ids, as rendered for a model. Raises InputError, naming stage and prompt, for one that the
    template refuses, and for one that leaves no room for `max_tokens` unless `overlong` takes its id."""
    limit = context_limit(model)
    for name, messages in prompts:
        try:
            ids = tuple(render_prompt(model.template, model.tokenizer, messages))
        except InputError as error:
            raise refused(context.name, "prompt", name, model.name, error) from None
        if limit is not None and len(ids) + max_tokens > limit:
            if overlong is not None:
                overlong(name)
                continue
            raise InputError(
                f"stage {context.name}: prompt {name} has {len(ids)} tokens, which with max_tokens {max_tokens} are "
                f"{len(ids) + max_tokens}, but the context of {model.name} is {limit}. Leave such prompts out, or "
                "lower max_tokens"
            )
        yield Rehearsed(name, model, (TokenSequence(ids, (False,) * len(ids)),), max_tokens)


def asked(prompts: Iterable[Prompt]) -> list[tuple[str, Sequence[Message]]]:
    """Prompts in the form that `prompt_rows` accepts."""
    return [(prompt.id, prompt.messages) for prompt in prompts]
