"""Gates of feed-forward layers: f(x) * up, where f is SiLU, or GELU with its tanh approximation.

torch computes them on every device. Its own graph would also keep f(x), and with a linear map the product. These
functions keep only x and up, and compute the rest again in the backward pass, with the same bits.

Shapes: H width, F width of the feed-forward layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def gate(x: Tensor, up: Tensor, gelu: bool = False) -> Tensor:
    """f(x) * up, (..., F). Differentiable in both; the graph keeps only x and up."""
    return _Gate.apply(x, up, gelu)  # type: ignore[return-value]


def gated_linear(x: Tensor, up: Tensor, weight_HF: Tensor, bias_H: Tensor | None, gelu: bool = False) -> Tensor:
    """(f(x) * up) W' + b, (..., H). The graph keeps no more activations than that of `gate`. Under autocast, x and up
    must have its type."""
    return _GatedLinear.apply(x, up, weight_HF, bias_H, gelu)  # type: ignore[return-value]


def _opened(x: Tensor, gelu: bool) -> Tensor:
    return F.gelu(x, approximate="tanh") if gelu else F.silu(x)


def _opened_backward(grad: Tensor, x: Tensor, gelu: bool) -> Tensor:
    if gelu:
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    return torch.ops.aten.silu_backward(grad, x)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, up)
        ctx.gelu = gelu
        return _opened(x, gelu) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, up = ctx.saved_tensors
        return _opened_backward(grads[0] * up, x, ctx.gelu), grads[0] * _opened(x, ctx.gelu), None


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # order of the arguments: context, then tensors, then the rest
        ctx: Any, x: Tensor, up: Tensor, weight_HF: Tensor, bias_H: Tensor | None, gelu: bool
    ) -> Tensor:
        ctx.save_for_backward(x, up, weight_HF)
        ctx.gelu = gelu
        return F.linear(_opened(x, gelu) * up, weight_HF, bias_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, up, weight_HF = ctx.saved_tensors
        grad, opened, grad_weight, grad_bias = grads[0], _opened(x, ctx.gelu), None, None
        grad_TH = grad.reshape(-1, grad.shape[-1])
        grad_product = grad @ weight_HF.to(grad.dtype)
        if ctx.needs_input_grad[2]:
            grad_weight = (grad_TH.T @ (opened * up).reshape(-1, x.shape[-1])).to(weight_HF.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_TH.sum(0).to(weight_HF.dtype)
        return _opened_backward(grad_product * up, x, ctx.gelu), grad_product * opened, grad_weight, grad_bias, None
