"""Recognises the parts of a decoder by the class names of the library's modules, reads their settings, and replaces
their forward methods."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import nn

from togi.kernels import Norm, Options
from togi.model.families import parts_of

NORMS = parts_of("RMSNorm", lambda family: not family.shifted)
SHIFTED_NORMS = parts_of("RMSNorm", lambda family: family.shifted)
"""Norms whose weight is added to 1."""

GATED = parts_of("MLP", lambda family: family.gated == "silu")
GELU_GATED = parts_of("MLP", lambda family: family.gated == "gelu")
SILU = ("SiLU", "SiLUActivation")
GELU = ("GELUTanh",)

WINDOW_OF_MODEL = parts_of("Attention", lambda family: family.window == "model")
WINDOW_OF_LAYER = parts_of("Attention", lambda family: family.window == "layer")
ATTENTION = parts_of("Attention", lambda family: bool(family.window))
"""Attention that applies rotary positions to the whole width of queries and keys, after a norm if the layer has one."""

LAYERS = parts_of("DecoderLayer", lambda family: family.layers)
"""Layers that compute x + attention(norm(x)), and then the same with the feed-forward part."""


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, which identifies a known part."""
    return type(module).__name__


def gelu_of(module: Any) -> bool | None:
    """Whether the gate of a feed-forward part is GELU (tanh) rather than SiLU; None for any other module."""
    if kind_of(module) not in (*GATED, *GELU_GATED):
        return None
    activation = kind_of(module.act_fn)
    return activation in GELU if activation in (*SILU, *GELU) else None


def norm_of(module: Any) -> Norm | None:
    """The parameters of a known norm; None for any other module."""
    if kind_of(module) in SHIFTED_NORMS:
        return Norm(module.weight, module.eps, 1.0)
    return Norm(module.weight, module.variance_epsilon, 0.0) if kind_of(module) in NORMS else None


def options_of(module: Any) -> Options:
    """The options of a known attention module."""
    kind = kind_of(module)
    window = module.config.sliding_window if kind in WINDOW_OF_MODEL else None
    if kind in WINDOW_OF_LAYER:
        window = module.sliding_window
    softcap = module.attn_logit_softcapping if kind == "Gemma2Attention" else None
    return Options(window=window, scale=module.scaling, softcap=softcap)


def rotates_whole_heads(module: Any, cosine: Any, rows: int) -> bool:
    """Whether the rotary angles of `rows` tokens cover the whole width of each head."""
    return cosine.numel() == rows * module.head_dim


# --- forwards ---------------------------------------------------------------------------------------------------------


def use_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replaces the forward method of a module: its class becomes a subclass of the same name with that method, so that
    the library's wrappers around it (such as recomputation) still work. (A method stored in the module itself would be
    a reference cycle, and keep the weights alive until the garbage collector runs.)"""
    module.__class__ = _kind_with(library_kind(module), forward)


def use_library(module: nn.Module) -> None:
    """Restores the library's forward method."""
    module.__class__ = library_kind(module)


@contextmanager
def library_parts(net: nn.Module) -> Iterator[None]:
    """Inside the context every module has the library's forward method."""
    before = [(module, module.__class__) for module in net.modules()]
    for module, _ in before:
        use_library(module)
    try:
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind


def library_kind(module: nn.Module) -> type:
    """The library's class of a module."""
    return getattr(type(module), "togi_library_kind", type(module))


def library_forward(module: Any, *given: Any, **settings: Any) -> Any:
    """Calls the library's forward method."""
    kind: Any = library_kind(module)
    return kind.forward(module, *given, **settings)


@lru_cache
def _kind_with(kind: type, forward: Callable[..., Any]) -> type:
    return type(kind.__name__, (kind,), {"forward": forward, "togi_library_kind": kind})
