"""Access to models by reference, for stages: answers, continuations, choices, scores, embeddings.

A stage that does not train a model never touches its network: the recipe (`models:`) decides whether the model is on
this machine or on a server. The module for local models needs torch and is imported on demand.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from togi.core.protocols import Chooser, Completer, Embedder, Generator, Scorer
from togi.core.records import Prompt, SamplingParams
from togi.core.settings import EmbedderRef, ModelRef, ScorerRef
from togi.data.features import HashedNgrams
from togi.stages.context import Context
from togi.text.template import Template


class ChatGenerator(Generator, Protocol):
    """A `Generator` that knows how its answers end: `terminator` closes an answer, `turn_starts` begin other turns.
    `fits` tells whether there is room for the longest answer to a prompt."""

    def fits(self, prompt: Prompt, params: SamplingParams) -> bool: ...

    @property
    def terminator(self) -> str: ...
    @property
    def turn_starts(self) -> tuple[str, ...]: ...


def generator(context: Context, ref: ModelRef, *, batch_rows: int, repeat: int = 0) -> ChatGenerator:
    """A generator of the model's answers under its chat template; it computes `batch_rows` samples together.

    `repeat` counts how often the same greedy question was asked before. Each time the server gets a new request,
    because its greedy answers may differ; otherwise the stored answer would be returned again.
    """
    return _place(context, ref).generator(context, ref, batch_rows=batch_rows, repeat=repeat)


def completer(context: Context, ref: ModelRef, *, batch_rows: int) -> Completer:
    """A completer, which continues plain texts with the model, without a chat template."""
    return _place(context, ref).completer(context, ref, batch_rows=batch_rows)


@dataclass(frozen=True, slots=True)
class Voices:
    """One model that answers under its chat template and continues plain texts."""

    speaker: ChatGenerator
    writer: Completer


def voices(context: Context, ref: ModelRef, *, batch_rows: int, continued_rows: int) -> Voices:
    """A generator and a completer of one model, which compute `batch_rows` answers or `continued_rows` continuations
    together."""
    speaker = generator(context, ref, batch_rows=batch_rows)
    return Voices(speaker, completer(context, ref, batch_rows=continued_rows))


def chooser(context: Context, ref: ModelRef) -> Chooser:
    """A chooser, which compares two words as the beginning of the model's answer."""
    return _place(context, ref).chooser(context, ref)


def tokenizer(context: Context, ref: ModelRef) -> Any:
    """The model's tokenizer, from the transformers library. Raises RecipeError for a model on a server if the recipe
    does not name its tokenizer."""
    return _place(context, ref).tokenizer(context, ref)


def reader(context: Context, ref: ModelRef) -> tuple[Any, Template]:
    """The tokenizer and the template with which a model reads conversations. Raises RecipeError as `tokenizer` does."""
    return _place(context, ref).reader(context, ref)


def scorer(context: Context, ref: ScorerRef) -> Scorer:
    """A reward model, trained by a stage or from outside."""
    return _place(context, ref).scorer(context, ref)


def embedder(context: Context, ref: EmbedderRef | None) -> Embedder:
    """A sentence embedder from outside, with its prefix; hashed character n-grams if the recipe names none."""
    return HashedNgrams() if ref is None else _place(context, ref).embedder(context, ref)


def _place(context: Context, ref: Any) -> Any:
    """The module for models at the location of this one."""
    here = context.inputs[ref].endpoint is None
    return importlib.import_module(f"togi.stages.endpoints_{'local' if here else 'remote'}")
