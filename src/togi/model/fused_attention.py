"""Attention of known decoders over forests, with the heads in the layout that the forest's attention reads.

Shapes: T rows, H query heads, K key heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor

from togi.model.attention import attend
from togi.model.decoders import library_forward, options_of, rotates_whole_heads


def attention_forward(
    module: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **settings: Any
) -> tuple[Tensor, None]:
    """Replaces the forward method of the library's attention; calls it if there is no forest, or not on CPU."""
    forest, (cosine, sine) = settings.get("togi_forest"), position_embeddings
    whole = rotates_whole_heads(module, cosine[0], hidden_states.shape[-2])
    dropout = module.training and module.attention_dropout
    if forest is None or not whole or dropout or not hidden_states.is_cpu:
        return library_forward(module, hidden_states, position_embeddings=position_embeddings, **settings)
    layers = module.q_proj, module.k_proj, module.v_proj
    query_THD, key_TKD, value_TKD = (_heads(module, layer(hidden_states)) for layer in layers)
    if hasattr(module, "q_norm"):
        query_THD, key_TKD = module.q_norm(query_THD), module.k_norm(key_TKD)
    dtype = value_TKD.dtype  # under autocast a norm's output may be wider
    query_HTD, key_KTD = (_rotated(heads.to(dtype), cosine[0], sine[0]) for heads in (query_THD, key_TKD))
    out_HTD = attend(forest, query_HTD, key_KTD, value_TKD.transpose(0, 1), options_of(module))
    return module.o_proj(out_HTD.transpose(0, 1).reshape(*hidden_states.shape[:-1], -1)), None


def _heads(module: Any, x: Tensor) -> Tensor:
    return x.view(x.shape[-2], -1, module.head_dim)


def _rotated(x_THD: Tensor, cosine_TD: Tensor, sine_TD: Tensor) -> Tensor:
    """Heads rotated by the angles of their positions, as (H, T, D), rounded to the type of the heads."""
    x_HTD = x_THD.transpose(0, 1)
    low, high = x_HTD.chunk(2, -1)
    return (x_HTD * cosine_TD + torch.cat((-high, low), -1) * sine_TD).to(x_THD.dtype)
