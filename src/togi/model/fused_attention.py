"""Attention of known decoders over forests, with rotary turns by compiled functions.

Shapes: T rows, H query heads, K key heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from togi.kernels.native import native
from togi.model.attention import attend
from togi.model.decoders import library_forward, options_of, turns_whole_heads


def attention_forward(
    module: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **settings: Any
) -> tuple[Tensor, None]:
    """The library's attention; what compiled functions do not compute, or is no forest, goes through the library."""
    functions = native() if hidden_states.is_cpu else None
    forest, angles = settings.get("togi_forest"), _angles(position_embeddings)
    whole = turns_whole_heads(module, angles[0], hidden_states.shape[-2])
    dropout = module.training and module.attention_dropout
    if forest is not None and functions is not None and whole and not dropout:
        query_THD = _heads(module, module.q_proj(hidden_states))
        if functions.turns(query_THD, angles):
            key_TKD, value_TKD = (_heads(module, layer(hidden_states)) for layer in (module.k_proj, module.v_proj))
            if hasattr(module, "q_norm"):
                query_THD, key_TKD = module.q_norm(query_THD), module.k_norm(key_TKD)
            query_HTD, key_KTD = (_Turn.apply(heads, *angles) for heads in (query_THD, key_TKD))
            out_HTD = attend(forest, query_HTD, key_KTD, value_TKD.transpose(0, 1), options_of(module))
            return module.o_proj(out_HTD.transpose(0, 1).reshape(*hidden_states.shape[:-1], -1)), None
    return library_forward(module, hidden_states, position_embeddings=position_embeddings, **settings)


def _heads(module: Any, x: Tensor) -> Tensor:
    return x.view(x.shape[-2], -1, module.head_dim)


def _angles(position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cosine, sine = position_embeddings
    return cosine[0], sine[0]


class _Turn(torch.autograd.Function):
    """Heads (T, H, D) turned by the angles (T, D) of their positions, as (H, T, D)."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cosine_TD: Tensor, sine_TD: Tensor) -> Tensor:
        functions = native()
        assert functions is not None
        ctx.save_for_backward(cosine_TD, sine_TD)
        return functions.turn(x_THD, (cosine_TD, sine_TD))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        functions = native()
        assert functions is not None
        return functions.turn(grads[0], ctx.saved_tensors, back=True), None, None
