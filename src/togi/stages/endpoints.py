"""What stages ask models for, by reference: answers, continuations, choices, scores, embeddings.

A stage that does not train a model never touches its network: where the model is, on this machine or on a server, is
the recipe's business (`models:`). What computes here brings torch and is imported when it is asked for.
"""

import importlib
from typing import Any, Protocol

from togi.core.protocols import Chooser, Completer, Embedder, Generator, Scorer
from togi.core.records import Prompt, SamplingParams
from togi.core.settings import EmbedderRef, ModelRef, ScorerRef
from togi.data.features import HashedNgrams
from togi.stages.context import Context
from togi.text.template import Template


class ChatGenerator(Generator, Protocol):
    """A `Generator` that says how its answers end: `terminator` closes one, `turn_starts` begin what is no answer; and
    whether there is room for the longest answer to a prompt (`fits`)."""

    def fits(self, prompt: Prompt, params: SamplingParams) -> bool: ...

    @property
    def terminator(self) -> str: ...
    @property
    def turn_starts(self) -> tuple[str, ...]: ...


def generator(context: Context, ref: ModelRef, *, batch_rows: int, repeat: int = 0) -> ChatGenerator:
    """What answers prompts as the model does under its chat template; `batch_rows` samples are computed together.

    `repeat` counts how often the same greedy question was put before. A server is asked anew each time, since its
    greedy answers may differ; its stored answer would else be taken for a second one.
    """
    return _place(context, ref).generator(context, ref, batch_rows=batch_rows, repeat=repeat)


def completer(context: Context, ref: ModelRef, *, batch_rows: int) -> Completer:
    """What continues plain texts as the model does, without a chat template."""
    return _place(context, ref).completer(context, ref, batch_rows=batch_rows)


def chooser(context: Context, ref: ModelRef) -> Chooser:
    """What says which of two words the model would rather begin its answer with."""
    return _place(context, ref).chooser(context, ref)


def tokenizer(context: Context, ref: ModelRef) -> Any:
    """The model's tokenizer, of the transformers library. Raises RecipeError for a model on a server whose tokenizer
    the recipe does not name."""
    return _place(context, ref).tokenizer(context, ref)


def reader(context: Context, ref: ModelRef) -> tuple[Any, Template]:
    """The tokenizer and the template with which a model reads conversations. Raises RecipeError as `tokenizer` does."""
    return _place(context, ref).reader(context, ref)


def scorer(context: Context, ref: ScorerRef) -> Scorer:
    """A reward model that a stage trained, or from outside."""
    return _place(context, ref).scorer(context, ref)


def embedder(context: Context, ref: EmbedderRef | None) -> Embedder:
    """A sentence embedder from outside, with its prefix; hashed n-grams of characters where the recipe names none."""
    return HashedNgrams() if ref is None else _place(context, ref).embedder(context, ref)


def _place(context: Context, ref: Any) -> Any:
    """The module that knows models where this one is."""
    here = context.inputs[ref].endpoint is None
    return importlib.import_module(f"togi.stages.endpoints_{'local' if here else 'remote'}")
