"""Replaces the attention of known decoders, after its query, key and value products, by a compiled function while
sampling.

The library computes all other parts, and number types that the function does not support. The results are the same up
to rounding.

Shapes: R rows, H query heads, K key heads, D head size.
"""

from typing import Any

from torch import Tensor, nn

from togi.kernels import New
from togi.model.decoders import (
    ATTENTION,
    kind_of,
    library_forward,
    norm_of,
    options_of,
    rotates_whole_heads,
    use_forward,
    use_library,
)
from togi.rollout.attention import DecodePass


def compute_natively(twin: nn.Module) -> None:
    """Replaces the forward methods of the known parts of a sampler's twin."""
    for module in list(twin.modules()):
        if kind_of(module) in ATTENTION:
            use_forward(module, _attention)
        else:
            use_library(module)


def _attention(
    module: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **settings: Any
) -> tuple[Tensor, None]:
    run = settings.get("togi_pass")
    whole = rotates_whole_heads(module, position_embeddings[0], len(hidden_states))
    if not isinstance(run, DecodePass) or not run.cache.layers[module.layer_idx].blocked or not whole:
        return library_forward(module, hidden_states, position_embeddings, **settings)
    new = New(
        query=module.q_proj(hidden_states),
        key=module.k_proj(hidden_states),
        value=module.v_proj(hidden_states),
        angles=position_embeddings,
        query_norm=norm_of(module.q_norm) if hasattr(module, "q_norm") else None,
        key_norm=norm_of(module.k_norm) if hasattr(module, "k_norm") else None,
    )
    found = run.attend_natively(module.layer_idx, new, options_of(module))
    return module.o_proj(found.to(hidden_states.dtype)), None
