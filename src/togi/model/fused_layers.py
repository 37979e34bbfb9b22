"""Parts of known decoders that keep less for their backward than the library's, and are faster, with the same results.

Shapes: T rows, H width, F width of the feed-forward part. For each row the library keeps gate, silu(gate), up and their
product, and the input of a norm twice; here it is gate and up, and the input once. The rest is made again from them.
Where there are compiled functions (`native`) they compute these parts, up to rounding; torch does elsewhere, and then
what is computed without a graph is the library's own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from togi.kernels.native import Native, Norm, native
from togi.model.decoders import (
    ATTENTION,
    LAYERS,
    NORMS,
    SHIFTED_NORMS,
    gelu_of,
    kind_of,
    library_forward,
    norm_of,
    use_forward,
)
from togi.model.fused_attention import attention_forward

DENSE_NORMS = ("input_layernorm", "post_attention_layernorm")
"""What these give is read by linear maps alone, so that under autocast it may have their type: it is cast once for all
of them, and kept once. In a mixture of experts it is not so."""


def keep_less(model: nn.Module) -> None:
    """Replaces the forwards of the parts that are known by name."""
    compiled = all(weight.is_cpu for weight in model.parameters()) and native() is not None
    for name, module in model.named_modules():
        forward = _forward_of(name, module, compiled)
        if forward is not None:
            use_forward(module, forward)


def _forward_of(name: str, module: nn.Module, compiled: bool) -> Any:
    """The forward that stands for a known part's own; None for any other module."""
    kind, gelu = kind_of(module), gelu_of(module)
    if gelu is False or (gelu and compiled):
        return _gated_forward
    if kind in NORMS:
        dense = name.endswith(DENSE_NORMS) and kind.replace("RMSNorm", "DecoderLayer") in LAYERS
        return _dense_norm_forward if dense else _norm_forward
    if not compiled:
        return None
    if kind in SHIFTED_NORMS:
        return _norm_forward
    if kind in LAYERS:
        return _layer_forward
    return attention_forward if kind in ATTENTION else None


# --- the feed-forward part --------------------------------------------------------------------------------------------


def _gated_forward(module: Any, x: Tensor) -> Tensor:
    gate, up, down, gelu = module.gate_proj(x), module.up_proj(x), module.down_proj, bool(gelu_of(module))
    if _gating(gate, up) is None and (gelu or not torch.is_grad_enabled()):
        return down(module.act_fn(gate) * up)
    if type(down) is not nn.Linear:  # an adapter, or weights in 4 bits: what reads the product keeps it
        return down(_Gated.apply(gate, up, gelu))
    return _GatedDown.apply(gate, up, down.weight, down.bias, gelu)  # type: ignore[return-value]


def _gating(gate: Tensor, up: Tensor) -> Native | None:
    """The compiled functions, if they compute with tensors like these."""
    functions = native() if gate.is_cpu else None
    return functions if functions is not None and functions.computes(gate, up) else None


def _product(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """f(gate) * up."""
    functions = _gating(gate, up)
    return F.silu(gate) * up if functions is None else functions.gate(gate, up, gelu)


def _product_backward(
    grad: Tensor, gate: Tensor, up: Tensor, gelu: bool, again: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of gate and up from that of f(gate) * up, and that product once more if it is wanted `again`."""
    functions = _gating(gate, up)
    if functions is not None:
        return functions.gate_backward(gate, up, grad, gelu, again)
    opened = F.silu(gate)
    return torch.ops.aten.silu_backward(grad * up, gate), grad * opened, opened * up if again else None


class _Gated(torch.autograd.Function):
    """f(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.gelu = gelu
        return _product(gate, up, gelu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return *_product_backward(grads[0], gate, up, ctx.gelu)[:2], None


class _GatedDown(torch.autograd.Function):
    """(f(gate) * up) W' + b: a linear map that does not keep its input. Under autocast gate and up have its type."""

    @staticmethod
    def forward(  # the signature of autograd functions: context, then tensors, then the rest
        ctx: Any, gate: Tensor, up: Tensor, weight_HF: Tensor, bias_H: Tensor | None, gelu: bool
    ) -> Tensor:
        ctx.save_for_backward(gate, up, weight_HF)
        ctx.gelu = gelu
        return F.linear(_product(gate, up, gelu), weight_HF, bias_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight_HF = ctx.saved_tensors
        grad = grads[0]
        grad_TH = grad.reshape(-1, grad.shape[-1])
        again, grad_weight, grad_bias = ctx.needs_input_grad[2], None, None
        grad_product = grad @ weight_HF.to(grad.dtype)
        grad_gate, grad_up, product = _product_backward(grad_product, gate, up, ctx.gelu, again)
        if product is not None:
            grad_weight = (grad_TH.T @ product.reshape(-1, gate.shape[-1])).to(weight_HF.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_TH.sum(0).to(weight_HF.dtype)
        return grad_gate, grad_up, grad_weight, grad_bias, None


# --- norms ------------------------------------------------------------------------------------------------------------


def _norm_forward(module: Any, hidden_states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    dtype, norm = dtype or hidden_states.dtype, norm_of(module)
    assert norm is not None
    if _norming(hidden_states, norm, dtype):
        return _SumNorm.apply(hidden_states, None, norm.weight_F, norm, dtype)[1]
    if norm.shift or not torch.is_grad_enabled():
        return library_forward(module, hidden_states)
    return _Norm.apply(hidden_states, norm.weight_F, norm.epsilon, dtype)  # type: ignore[return-value]


def _norming(x: Tensor, norm: Norm, dtype: torch.dtype) -> bool:
    """Whether compiled functions compute such a norm."""
    functions = native() if x.is_cpu else None
    return functions is not None and functions.norms(x, norm, dtype)


def _dense_norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    return _norm_forward(module, hidden_states, _dense_type(hidden_states))


def _dense_type(hidden_states: Tensor) -> torch.dtype:
    """The type in which linear maps read hidden states."""
    kind = hidden_states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype


def _layer_forward(module: Any, hidden_states: Tensor, **settings: Any) -> Tensor:
    """The library's decoder layer; a sum and the norm of it are one step, forward and backward."""
    x, normed = _sum_and_norm(module.input_layernorm, hidden_states, None)
    attended, _ = module.self_attn(hidden_states=normed, **settings)
    x, normed = _sum_and_norm(module.post_attention_layernorm, x, attended)
    return x + module.mlp(normed)


def _sum_and_norm(module: Any, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
    norm, dtype = norm_of(module), _dense_type(x)
    if norm is not None and _norming(x, norm, dtype) and (more is None or more.dtype == dtype):
        return _SumNorm.apply(x, more, norm.weight_F, norm, dtype)  # type: ignore[return-value]
    whole = x if more is None else x + more
    return whole, module(whole)


class _SumNorm(torch.autograd.Function):
    """x + more (None: x as it is) and (shift + weight) * that / its rms, as `dtype`, by compiled functions."""

    @staticmethod
    def forward(  # the signature of autograd functions: context, then tensors, then the rest
        ctx: Any, x: Tensor, more: Tensor | None, weight_H: Tensor, norm: Norm, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        functions = native()
        assert functions is not None
        whole, y = functions.norm(x, norm, dtype, more)
        ctx.save_for_backward(whole, weight_H)
        ctx.numbers, ctx.dtype = (norm.epsilon, norm.shift), dtype
        ctx.set_materialize_grads(False)
        return whole.view_as(whole), y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        whole, weight_H = ctx.saved_tensors
        functions, norm, wanted = native(), Norm(weight_H, *ctx.numbers), ctx.needs_input_grad[1:3]
        grad_sum, grad_y = grads
        assert functions is not None
        if grad_y is None:
            grad_y = torch.zeros_like(whole, dtype=ctx.dtype)
        return *functions.norm_backward(whole, norm, grad_y, grad_sum, wanted), None, None


def _normalised(x: Tensor, scale: Tensor) -> Tensor:
    return x.to(scale.dtype) * scale


class _Norm(torch.autograd.Function):
    """weight * x / rms(x), in fp32 or wider inside, as `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, scale, weight_H)
        return (weight_H * (wide * scale).to(x.dtype)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight_H = ctx.saved_tensors
        normalised = _normalised(x, scale)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            shared = tuple(range(x.dim() - 1))
            grad_weight = (grads[0] * normalised.to(x.dtype)).sum(shared).to(weight_H.dtype)
        grad = (grads[0] * weight_H).to(scale.dtype)
        mean = (grad * normalised).mean(-1, keepdim=True)
        return grad.sub_(normalised.mul_(mean)).mul_(scale).to(x.dtype), grad_weight, None, None
