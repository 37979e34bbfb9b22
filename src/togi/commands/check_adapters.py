"""Checks that the adapters which a stage would train fit the model."""

from pathlib import Path

from togi.core.errors import InputError
from togi.core.sources import ModelSource
from togi.model.adapter import ALL_LINEAR, refuse_targets
from togi.model.load import inspect
from togi.model.network import linear_layers
from togi.stages.training.resources import Resources

HEADS = ("lm_head", "score")
"""Layers that depend on the stage: a reward model has another head than the model that it starts from."""


def check_targets(settings: Resources, source: ModelSource, cache: Path, name: str) -> None:
    """Raises InputError if `lora.targets` names a layer that the model `name` does not have."""
    if settings.lora is None:
        return
    targets = [target for target in settings.lora.targets if target not in (ALL_LINEAR, *HEADS)]
    if not targets:
        return
    layers = linear_layers(inspect(source, cache, weights=False))
    try:
        refuse_targets(targets, layers)
    except InputError as error:
        raise InputError(f"{name}: lora.targets: {error}") from None
