"""Root-mean-square norms.

Shapes: F width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from togi.kernels.dispatch import compiled
from togi.kernels.native import NORM_TYPES, Native


@dataclass(frozen=True, slots=True)
class Norm:
    """x / rms(x) * (shift + weight)."""

    weight_F: Tensor
    epsilon: float
    shift: float


def norm(x: Tensor, norm: Norm, dtype: torch.dtype | None = None) -> Tensor:
    """The norm of x (..., F), computed in float32 or wider, as `dtype` (None: that of x). Differentiable in x and the
    weight; the graph keeps at most x and one number per row.

    torch gives the same numbers as the library's norms; compiled functions round only once.
    """
    dtype = dtype or x.dtype
    if _functions(x, norm, dtype) is not None:
        return _Compiled.apply(x, norm.weight_F, norm, dtype)  # type: ignore[return-value]
    if norm.shift or not torch.is_grad_enabled():
        return _plain(x, norm).to(dtype)
    return _Lean.apply(x, norm.weight_F, norm.epsilon, dtype)  # type: ignore[return-value]


def _functions(x: Tensor, norm: Norm, dtype: torch.dtype) -> Native | None:
    """The compiled functions, if they compute such a norm. A sharded weight has no data here."""
    weight_F = norm.weight_F
    known = x.is_cpu and weight_F.is_cpu and (x.dtype, weight_F.dtype, dtype) in NORM_TYPES
    return compiled("norm") if known and weight_F.data_ptr() != 0 else None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scale(wide: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)


def _plain(x: Tensor, norm: Norm) -> Tensor:
    wide = _wide(x)
    normalised = wide * _scale(wide, norm.epsilon)
    return normalised * (norm.shift + _wide(norm.weight_F)) if norm.shift else norm.weight_F * normalised.to(x.dtype)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_F: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
        functions = compiled("norm")
        assert functions is not None
        x = x.contiguous()
        ctx.save_for_backward(x, weight_F)
        ctx.functions, ctx.numbers = functions, (norm.epsilon, norm.shift)
        return functions.norm(x, weight_F, norm.epsilon, norm.shift, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_F = ctx.saved_tensors
        found = ctx.functions.norm_backward(x, weight_F, *ctx.numbers, grads[0], ctx.needs_input_grad[1])
        return *found, None, None


class _Lean(torch.autograd.Function):
    """weight * x / rms(x), as `dtype`; the graph keeps the input only once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_F: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        wide = _wide(x)
        scale = _scale(wide, epsilon)
        ctx.save_for_backward(x, scale, weight_F)
        return (weight_F * (wide * scale).to(x.dtype)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight_F = ctx.saved_tensors
        normalised = x.to(scale.dtype) * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            shared = tuple(range(x.dim() - 1))
            grad_weight = (grads[0] * normalised.to(x.dtype)).sum(shared).to(weight_F.dtype)
        grad = (grads[0] * weight_F).to(scale.dtype)
        mean = (grad * normalised).mean(-1, keepdim=True)
        return grad.sub_(normalised.mul_(mean)).mul_(scale).to(x.dtype), grad_weight, None, None
