"""What stages ask models for, by reference: answers, continuations, choices, scores, embeddings.

A stage that does not train a model never touches its network: where the model is, and on which device, is the recipe's
business (`models:`).
"""

from typing import Any, Protocol

from togi.core.protocols import Chooser, Completer, Embedder, Generator, Scorer
from togi.core.settings import EmbedderRef, ModelRef, ScorerRef
from togi.model.embed import SentenceEmbedder
from togi.model.first_token import ModelChooser
from togi.rollout.completer import ModelCompleter
from togi.rollout.generator import ModelGenerator
from togi.stages.arithmetic import model_device
from togi.stages.context import Context
from togi.stages.models import load_model, load_scorer


class ChatGenerator(Generator, Protocol):
    """A `Generator` that says how its answers end: `terminator` closes one, `turn_starts` begin what is no answer."""

    @property
    def terminator(self) -> str: ...
    @property
    def turn_starts(self) -> tuple[str, ...]: ...


def generator(context: Context, ref: ModelRef, *, batch_rows: int) -> ChatGenerator:
    """What answers prompts as the model does under its chat template; `batch_rows` samples are computed together."""
    model = load_model(context, ref)
    return ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=batch_rows)


def completer(context: Context, ref: ModelRef, *, batch_rows: int) -> Completer:
    """What continues plain texts as the model does, without a chat template."""
    model = load_model(context, ref)
    return ModelCompleter(model.net, model.tokenizer, model.template.terminator, batch_rows=batch_rows)


def chooser(context: Context, ref: ModelRef) -> Chooser:
    """What says which of two words the model would rather begin its answer with."""
    model = load_model(context, ref)
    return ModelChooser(model.net, model.tokenizer, model.template)


def tokenizer(context: Context, ref: ModelRef) -> Any:
    """The model's tokenizer, of the transformers library."""
    return load_model(context, ref).tokenizer


def scorer(context: Context, ref: ScorerRef) -> Scorer:
    """A reward model that a stage trained, or from outside."""
    return load_scorer(context, ref)


def embedder(context: Context, ref: EmbedderRef) -> Embedder:
    """A sentence embedder from outside, with its prefix."""
    source = context.model(ref)
    return SentenceEmbedder(source, context.cache, prefix=source.prefix, device=model_device(source))
