"""Models for stages: loaded with the choices of this machine, kept while the worker lives, fresh where they are trained."""

from functools import lru_cache
from pathlib import Path

from togi.core.settings import Ref
from togi.core.sources import ModelSource
from togi.model.load import LoadedModel, load
from togi.model.lora import add_lora
from togi.model.scalar import ModelScorer, load_reward_model
from togi.stages.base import MODEL_FOLDER, Context
