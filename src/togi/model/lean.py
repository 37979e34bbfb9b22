"""Norms and gated feed-forward parts that keep less for their backward than the library's, with the same results.

Shapes: T rows, H width, F width of the feed-forward part. For each row the library keeps gate, silu(gate), up and their
product, and the input of a norm twice; here it is gate and up, and the input once. The rest is made again from them.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
SILU = ("SiLU", "SiLUActivation")
NORMS = (
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "MixtralRMSNorm",
    "Qwen2RMSNorm",
    "Qwen3RMSNorm",
    "Qwen3MoeRMSNorm",
)


DENSE_NORMS = ("input_layernorm", "post_attention_layernorm")
"""What these give is read by linear maps alone, so that under autocast it may have their type: it is cast once for all
of them, and kept once. In a mixture of experts it is not so."""


def keep_less(model: nn.Module) -> None:
    """Replaces the forwards of the parts that are known by name; without a graph they are the library's own still."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in GATED and type(module.act_fn).__name__ in SILU:
            module.forward = MethodType(_gated_forward, module)
        elif kind in NORMS:
            dense = name.endswith(DENSE_NORMS) and kind.replace("RMSNorm", "MLP") in GATED
            module.forward = MethodType(_dense_norm_forward if dense else _norm_forward, module)


# --- the feed-forward part --------------------------------------------------------------------------------------------


def _gated_forward(module: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return type(module).forward(module, x)
    gate, up, down = module.gate_proj(x), module.up_proj(x), module.down_proj
    if type(down) is not nn.Linear:  # an adapter, or weights in 4 bits: what reads the product keeps it
        return down(_Gated.apply(gate, up))
    return _GatedDown.apply(gate, up, down.weight, down.bias)  # type: ignore[return-value]


def _product_gradient(grad: Tensor, gate: Tensor, up: Tensor, opened: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up from that of silu(gate) * up, where `opened` is silu(gate)."""
    return torch.ops.aten.silu_backward(grad * up, gate), grad * opened


class _Gated(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return _product_gradient(grads[0], gate, up, F.silu(gate))


class _GatedDown(torch.autograd.Function):
    """(silu(gate) * up) W' + b: a linear map that does not keep its input. Under autocast gate and up have its type."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight_HF: Tensor, bias_H: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight_HF)
        return F.linear(F.silu(gate) * up, weight_HF, bias_H)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight_HF = ctx.saved_tensors
        grad = grads[0]
        grad_TH = grad.reshape(-1, grad.shape[-1])
        grad_weight = grad_bias = None
        opened = F.silu(gate)
        if ctx.needs_input_grad[2]:
            product_TF = (opened * up).reshape(-1, gate.shape[-1])
            grad_weight = (grad_TH.T @ product_TF).to(weight_HF.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_TH.sum(0).to(weight_HF.dtype)
        grad_product = grad @ weight_HF.to(grad.dtype)
        return *_product_gradient(grad_product, gate, up, opened), grad_weight, grad_bias


# --- the norm ---------------------------------------------------------------------------------------------------------


def _norm_forward(module: Any, hidden_states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    if not torch.is_grad_enabled():
        return type(module).forward(module, hidden_states)
    eps, dtype = module.variance_epsilon, dtype or hidden_states.dtype
    return _Norm.apply(hidden_states, module.weight, eps, dtype)  # type: ignore[return-value]


def _dense_norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    kind = hidden_states.device.type
    narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return _norm_forward(module, hidden_states, narrow)


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
