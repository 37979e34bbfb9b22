"""Parts of known decoders that `native.c` computes while sampling: norms, gates, and attention from its products on.

A part is known by the name of its class, as in `togi.model.lean`; any other, and every number type that the functions
do not take, goes through the library as it stands. The results are the same up to rounding.

Shapes: R rows, H query heads, K key heads, D head size, F width.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from togi.model.lean import NORMS, SILU
from togi.rollout.attention import DecodePass, New, Rule
from togi.rollout.native import Norm, native

SHIFTED_NORMS = ("Gemma2RMSNorm", "Gemma3RMSNorm")
"""Norms whose weight is added to 1."""

GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Gemma2MLP", "Gemma3MLP")
GELU = ("GELUTanh",)

WINDOW_OF_MODEL = ("MistralAttention", "MixtralAttention")
WINDOW_OF_LAYER = ("Qwen2Attention", "Qwen3Attention", "Gemma2Attention", "Gemma3Attention")
ATTENTION = ("LlamaAttention", *WINDOW_OF_MODEL, *WINDOW_OF_LAYER)
"""Queries and keys are turned by rotary positions over their whole width, after a norm if the layer has one."""


def compute_natively(twin: nn.Module) -> None:
    """Replaces the forwards of the known parts of a sampler's twin, where there are compiled functions."""
    functions = native()
    for module in twin.modules() if functions is not None else ():
        forward = _forward_of(module)
        if forward is not None:
            vars(module).pop("forward", None)  # that of training
            module.__class__ = _kind_with(type(module), forward)


@lru_cache
def _kind_with(kind: type, forward: Callable[..., Any]) -> type:
    """The class with another forward, under the same name. (A forward kept in the module itself would be a circle, and
    the weights would outlive the sampler until such circles are looked for.)"""
    return type(kind.__name__, (kind,), {"forward": forward})


def _forward_of(module: Any) -> Callable[..., Any] | None:
    """The forward that stands for a known part's own; None for any other module."""
    kind = type(module).__name__
    if kind in (*NORMS, *SHIFTED_NORMS):
        return _norm
    if kind in GATED and type(module.act_fn).__name__ in (*SILU, *GELU):
        return _gated
    return _attention if kind in ATTENTION else None


def norm_of(module: Any) -> Norm:
    """What a known norm computes."""
    if type(module).__name__ in SHIFTED_NORMS:
        return Norm(module.weight, module.eps, 1.0)
    return Norm(module.weight, module.variance_epsilon, 0.0)


def rule_of(module: Any) -> Rule:
    """What a known attention asks for."""
    kind = type(module).__name__
    window = module.config.sliding_window if kind in WINDOW_OF_MODEL else None
    if kind in WINDOW_OF_LAYER:
        window = module.sliding_window
    softcap = module.attn_logit_softcapping if kind == "Gemma2Attention" else None
    return Rule(scaling=module.scaling, window=window, softcap=softcap)


def _own_forward(module: Any, *given: Any, **settings: Any) -> Any:
    """The library's."""
    kind: Any = super(type(module), module)
    return kind.forward(*given, **settings)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    functions = native()
    if functions is None or not functions.computes(hidden_states, module.weight):
        return _own_forward(module, hidden_states)
    return functions.norm(hidden_states, norm_of(module))


def _gated(module: Any, x: Tensor) -> Tensor:
    functions = native()
    gate, up = module.gate_proj(x), module.up_proj(x)
    if functions is None or not functions.computes(gate, up):
        return module.down_proj(module.act_fn(gate) * up)
    return module.down_proj(functions.gate(gate, up, type(module.act_fn).__name__ in GELU))


def _attention(
    module: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **settings: Any
) -> tuple[Tensor, None]:
    run = settings.get("togi_pass")
    turned = position_embeddings[0].numel() == len(hidden_states) * module.head_dim  # else a part of each head alone
    if not isinstance(run, DecodePass) or not run.cache.layers[module.layer_idx].blocked or not turned:
        return _own_forward(module, hidden_states, position_embeddings, **settings)
    new = New(
        query=module.q_proj(hidden_states),
        key=module.k_proj(hidden_states),
        value=module.v_proj(hidden_states),
        turn=position_embeddings,
        query_norm=norm_of(module.q_norm) if hasattr(module, "q_norm") else None,
        key_norm=norm_of(module.k_norm) if hasattr(module, "k_norm") else None,
    )
    found = run.attend_natively(module.layer_idx, new, rule_of(module))
    return module.o_proj(found.to(hidden_states.dtype)), None
