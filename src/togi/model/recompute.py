"""Activation checkpointing: only the input of each layer is kept, and the backward pass recomputes the layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from togi.core.errors import InputError


@contextmanager
def recomputed_layers(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """A context in which forward passes that build a graph use checkpointing. Outside of it the model is unchanged, so
    a sampler that shares it keeps its caches.

    Raises InputError for a model whose layers the library cannot recompute.
    """
    if not (wanted and torch.is_grad_enabled()):
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"{type(model).__name__}: its layers cannot be recomputed: set activation_checkpointing: false"
        )
    if not all(layer.gradient_checkpointing for layer in layers):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        layer.training = True  # the library requires it; the parts inside the layer stay without dropout
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
