"""Gates of feed-forward layers: f(x) * up, where f is SiLU, or GELU with its tanh approximation.

Shapes: H width, F width of the feed-forward layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from togi.kernels.dispatch import alike, compiled
from togi.kernels.native import Native


def gate(x: Tensor, up: Tensor, gelu: bool = False) -> Tensor:
    """f(x) * up, (..., F). Differentiable in both. With SiLU, or compiled, the graph keeps only x and up."""
    if _plainly(x, up, gelu):
        return _product(x, up, gelu)
    return _Gate.apply(x, up, gelu)  # type: ignore[return-value]


def gated_linear(x: Tensor, up: Tensor, weight_HF: Tensor, bias_H: Tensor | None, gelu: bool = False) -> Tensor:
    """(f(x) * up) W' + b, (..., H). The graph keeps no more activations than that of `gate`. Under autocast, x and up
    must have its type."""
    if _plainly(x, up, gelu):
        return F.linear(_product(x, up, gelu), weight_HF, bias_H)
    return _GatedLinear.apply(x, up, weight_HF, bias_H, gelu)  # type: ignore[return-value]


def _plainly(x: Tensor, up: Tensor, gelu: bool) -> bool:
    """Whether plain torch operations are used, with torch's own graph if gradients are on."""
    return _functions(x, up) is None and (gelu or not torch.is_grad_enabled())


def _functions(x: Tensor, up: Tensor) -> Native | None:
    return compiled("gate") if alike(x, up) else None


def _product(x: Tensor, up: Tensor, gelu: bool) -> Tensor:
    functions = _functions(x, up)
    if functions is not None:
        return functions.gate(x, up, gelu)
    return (F.gelu(x, approximate="tanh") if gelu else F.silu(x)) * up


def _product_backward(
    grad: Tensor, x: Tensor, up: Tensor, gelu: bool, again: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x and up from that of f(x) * up, and with `again` the recomputed product."""
    functions = _functions(x, up)
    if functions is not None:
        return functions.gate_backward(x, up, grad, gelu, again)
    opened = F.silu(x)
    return torch.ops.aten.silu_backward(grad * up, x), grad * opened, opened * up if again else None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, up)
        ctx.gelu = gelu
        return _product(x, up, gelu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, up = ctx.saved_tensors
        return *_product_backward(grads[0], x, up, ctx.gelu)[:2], None


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # order of the arguments: context, then tensors, then the rest
        ctx: Any, x: Tensor, up: Tensor, weight_HF: Tensor, bias_H: Tensor | None, gelu: bool
    ) -> Tensor:
        ctx.save_for_backward(x, up, weight_HF)
        ctx.gelu = gelu
        return F.linear(_product(x, up, gelu), weight_HF, bias_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, up, weight_HF = ctx.saved_tensors
        grad = grads[0]
        grad_TH = grad.reshape(-1, grad.shape[-1])
        again, grad_weight, grad_bias = ctx.needs_input_grad[2], None, None
        grad_product = grad @ weight_HF.to(grad.dtype)
        grad_x, grad_up, product = _product_backward(grad_product, x, up, ctx.gelu, again)
        if product is not None:
            grad_weight = (grad_TH.T @ product.reshape(-1, x.shape[-1])).to(weight_HF.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_TH.sum(0).to(weight_HF.dtype)
        return grad_x, grad_up, grad_weight, grad_bias, None
