"""Models for stages: kept while the worker lives where they are only read, fresh where they are trained."""

from functools import lru_cache
from pathlib import Path

import torch

from togi.core.settings import ModelRef, ScorerRef
from togi.core.sources import ModelSource
from togi.model.load import LoadedModel, load
from togi.model.scalar import ModelScorer, load_reward_model
from togi.stages.arithmetic import arithmetic, device
from togi.stages.base import MODEL_FOLDER, Context
from togi.text.render import check_template

KEPT = 4
"""Models that a worker keeps at once; the one used longest ago goes first."""


@lru_cache(maxsize=KEPT)
def _kept(source: ModelSource, cache: Path, dtype: torch.dtype) -> LoadedModel:
    return load(source, cache, dtype=dtype, device=device())


@lru_cache(maxsize=KEPT)
def _kept_scorer(source: ModelSource, cache: Path, dtype: torch.dtype) -> ModelScorer:
    return ModelScorer(load_reward_model(source, cache, dtype=dtype, device=device()))


def load_model(context: Context, ref: ModelRef) -> LoadedModel:
    """A model to read from; its template is checked against its tokenizer. Do not change its weights."""
    model = _kept(context.model(ref), context.cache, arithmetic(context).dtype)
    check_template(model.template, model.tokenizer)
    return model


def load_trainable(context: Context, ref: ModelRef) -> LoadedModel:
    """A model of one's own, to be trained: its weights are float32, whatever products are computed in."""
    arithmetic(context)
    model = load(context.model(ref), context.cache, device=device())
    check_template(model.template, model.tokenizer)
    return model


def load_scorer(context: Context, ref: ScorerRef) -> ModelScorer:
    """A reward model that a stage trained."""
    folder = context.inputs[ref].folder
    assert folder is not None, f"{ref} is not a stage"
    source = ModelSource(kind="path", name=str(folder / MODEL_FOLDER))
    return _kept_scorer(source, context.cache, arithmetic(context).dtype)
