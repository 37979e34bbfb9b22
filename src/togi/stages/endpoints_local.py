"""Access to models that are computed in this process, for stages."""

from typing import Any

from togi.core.protocols import Scorer
from togi.core.settings import EmbedderRef, ModelRef, ScorerRef
from togi.model.embed import SentenceEmbedder
from togi.model.first_token import ModelChooser
from togi.rollout.completer import ModelCompleter
from togi.rollout.generator import ModelGenerator
from togi.stages.arithmetic import model_device
from togi.stages.context import Context
from togi.stages.device_room import bound_keys
from togi.stages.models import load_model, load_scorer
from togi.stages.rehearsal_work import weightless
from togi.text.template import Template


def generator(context: Context, ref: ModelRef, *, batch_rows: int, repeat: int = 0) -> ModelGenerator:
    """See `togi.stages.endpoints`. Ignores `repeat`, because greedy answers are always the same here."""
    model = load_model(context, ref)
    found = ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=batch_rows, name=model.name)
    bound_keys(context, ref, model.net, found.sampler)
    return found


def completer(context: Context, ref: ModelRef, *, batch_rows: int) -> ModelCompleter:
    """See `togi.stages.endpoints`."""
    model = load_model(context, ref)
    found = ModelCompleter(model.net, model.tokenizer, model.template.terminator, batch_rows=batch_rows)
    bound_keys(context, ref, model.net, found.sampler)
    return found


def chooser(context: Context, ref: ModelRef) -> ModelChooser:
    """See `togi.stages.endpoints`."""
    model = load_model(context, ref)
    return ModelChooser(model.net, model.tokenizer, model.template)


def tokenizer(context: Context, ref: ModelRef) -> Any:
    """See `togi.stages.endpoints`."""
    return load_model(context, ref).tokenizer


def reader(context: Context, ref: ModelRef) -> tuple[Any, Template]:
    """See `togi.stages.endpoints`."""
    model = weightless(context, ref)
    return model.tokenizer, model.template


def scorer(context: Context, ref: ScorerRef) -> Scorer:
    """See `togi.stages.endpoints`."""
    return load_scorer(context, ref)


def embedder(context: Context, ref: EmbedderRef) -> SentenceEmbedder:
    """See `togi.stages.endpoints`."""
    source = context.model(ref)
    return SentenceEmbedder(source, context.cache, prefix=source.prefix, device=model_device(source))
