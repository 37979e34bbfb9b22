"""Parts of known decoders that are faster than the library's and keep less for the backward pass. Results are the same.

Shapes: T rows, H width, F width of the feed-forward part. For each row the library keeps gate, silu(gate), up and their
product, and the input of a norm twice; these parts keep gate and up, and the input once, and recompute the rest.
"""

from typing import Any

import torch
from torch import Tensor, nn

from togi import kernels
from togi.model.decoders import ATTENTION, LAYERS, gelu_of, kind_of, norm_of, use_forward
from togi.model.fused_attention import attention_forward

DENSE_NORMS = ("input_layernorm", "post_attention_layernorm")
"""Norms whose output only linear layers read, so that under autocast it may have their type: it is cast, and kept, once
for all of them. This does not hold in a mixture of experts."""


def keep_less(model: nn.Module) -> bool:
    """Replaces the forward methods of known parts; returns whether there are any."""
    replaced = False
    for name, module in model.named_modules():
        forward = _forward_of(name, module)
        if forward is not None:
            use_forward(module, forward)
            replaced = True
    return replaced


def _forward_of(name: str, module: nn.Module) -> Any:
    """The replacement for the forward method of a known part, or None for any other module."""
    if gelu_of(module) is not None:
        return _gated_forward
    if norm_of(module) is None:
        return attention_forward if kind_of(module) in ATTENTION else None
    dense = name.endswith(DENSE_NORMS) and kind_of(module).replace("RMSNorm", "DecoderLayer") in LAYERS
    return _dense_norm_forward if dense else _norm_forward


def _gated_forward(module: Any, x: Tensor) -> Tensor:
    gate, up, down, gelu = module.gate_proj(x), module.up_proj(x), module.down_proj, bool(gelu_of(module))
    if type(down) is not nn.Linear:  # an adapter or 4-bit layer keeps its own input
        return down(kernels.gate(gate, up, gelu))
    return kernels.gated_linear(gate, up, down.weight, down.bias, gelu)


def _norm_forward(module: Any, hidden_states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    norm = norm_of(module)
    assert norm is not None
    return kernels.norm(hidden_states, norm, dtype)


def _dense_norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    kind = hidden_states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
    return _norm_forward(module, hidden_states, dtype)
