"""Rotary positions.

Shapes: T positions, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from togi.kernels.dispatch import alike, compiled

Angles = tuple[Tensor, Tensor]
"""Cosines and sines (T, D)."""


def rotate(x_THD: Tensor, angles: Angles) -> Tensor:
    """Heads rotated by the angles of their positions, as (H, T, D), rounded to the type of the heads. Differentiable
    only in the heads."""
    known = alike(x_THD, x_THD) and alike(*angles)
    if known and compiled("rotate") is not None:
        return _Rotate.apply(x_THD, *angles)  # type: ignore[return-value]
    x_HTD, (cosine_TD, sine_TD) = x_THD.transpose(0, 1), angles
    low, high = x_HTD.chunk(2, -1)
    return (x_HTD * cosine_TD + torch.cat((-high, low), -1) * sine_TD).to(x_THD.dtype)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cosine_TD: Tensor, sine_TD: Tensor) -> Tensor:
        functions = compiled("rotate")
        assert functions is not None
        ctx.save_for_backward(cosine_TD, sine_TD)
        ctx.functions = functions
        return functions.rotate(x_THD, (cosine_TD, sine_TD))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.functions.rotate(grads[0], ctx.saved_tensors, back=True), None, None
