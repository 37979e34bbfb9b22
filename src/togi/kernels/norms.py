"""Root-mean-square norms.

torch computes them on every device, with the same numbers as the library's norms. Its own graph would also keep the
wide copy of x and the product; this one keeps only x and one number per row.

Shapes: F width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Norm:
    """x / rms(x) * (shift + weight)."""

    weight_F: Tensor
    epsilon: float
    shift: float


def norm(x: Tensor, norm: Norm, dtype: torch.dtype | None = None) -> Tensor:
    """The norm of x (..., F), computed in float32 or wider, as `dtype` (None: that of x). Differentiable in x and the
    weight."""
    return _Norm.apply(x, norm.weight_F, norm.epsilon, norm.shift, dtype or x.dtype)  # type: ignore[return-value]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rounded(normalised: Tensor, shift: float, dtype: torch.dtype) -> Tensor:
    """The library rounds before it multiplies by a weight without a shift."""
    return normalised if shift else normalised.to(dtype)


def _factor(weight_F: Tensor, shift: float) -> Tensor:
    return shift + _wide(weight_F) if shift else weight_F


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_F: Tensor, epsilon: float, shift: float, dtype: torch.dtype) -> Tensor:
        wide = _wide(x)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, scale, weight_F)
        ctx.shift = shift
        return (_factor(weight_F, shift) * _rounded(wide * scale, shift, x.dtype)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight_F = ctx.saved_tensors
        normalised = x.to(scale.dtype) * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            shared = tuple(range(x.dim() - 1))
            grad_weight = (grads[0] * _rounded(normalised, ctx.shift, x.dtype)).sum(shared).to(weight_F.dtype)
        grad = (grads[0] * _factor(weight_F, ctx.shift)).to(scale.dtype)
        mean = (grad * normalised).mean(-1, keepdim=True)
        return grad.sub_(normalised.mul_(mean)).mul_(scale).to(x.dtype), grad_weight, None, None, None
