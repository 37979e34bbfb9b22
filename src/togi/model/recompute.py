"""What a forward keeps for its backward: all but what costs next to nothing to compute again, or with activation
checkpointing the input of each layer alone. What is computed again is the same bits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from togi.core.errors import InputError
from togi.model.families import TESTED

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""The parts of a gated feed-forward part."""


@contextmanager
def recomputed(model: PreTrainedModel, layers: bool) -> Iterator[None]:
    """Forwards inside the context keep less, where a graph is built at all: nothing from inside of norms and gates, and
    with `layers` the input of each layer alone. Outside of it the model is as it was: a sampler that shares it keeps
    its caches.

    Raises InputError for a model whose layers the library cannot compute again.
    """
    if not torch.is_grad_enabled():
        yield
        return
    with _layers(model) if layers else _cheap_parts(model):
        yield


@contextmanager
def _cheap_parts(model: PreTrainedModel) -> Iterator[None]:
    """A quarter less is kept of a layer, for a hundredth more work."""
    found: dict[nn.Module, Callable[..., Tensor]] = {}
    if model.config.get_text_config().model_type in TESTED:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                found[module] = partial(_again, module.forward)
            elif {name for name, _ in module.named_children()} == GATED:
                found[module] = partial(_gated, module)
    for module, forward in found.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in found:
            del module.forward  # the class's own is back


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _gated(module: nn.Module, rows: Tensor) -> Tensor:
    def gate(gate: Tensor, up: Tensor) -> Tensor:
        return module.act_fn(gate) * up

    return module.down_proj(_again(gate, module.gate_proj(rows), module.up_proj(rows)))


@contextmanager
def _layers(model: PreTrainedModel) -> Iterator[None]:
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"{type(model).__name__}: its layers cannot be computed again: set activation_checkpointing: false"
        )
    if not all(layer.gradient_checkpointing for layer in layers):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        layer.training = True  # the library's condition; the parts of the layer stay without dropout
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
