"""Linear maps of few rows, whose weights are laid out once for many calls.

A product on CPU may rearrange the weights at every call; few rows do not repay that. Packing does it once: in the
layout of `c/linear.c` where that computes such a product, else in oneDNN's own, by the operators that torch's
compiler uses for frozen weights. The products stay the same up to the order of their sums.

Where the processor has no products in a half type, torch emulates them (bfloat16 is 8 times slower than float32 on
AVX2). There the packed copy is float32: inputs are widened and results rounded to the half type, which is what a
product in that type with float32 sums does.

Shapes: R rows, N outputs, I inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from togi.kernels.dispatch import compiled
from togi.kernels.native import Native

MOST_ROWS = 64
"""Compiled products of more rows are left to torch: they are no longer bound by reading the weights."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight (N, I) and a copy of it in another layout."""

    weight_NI: Tensor
    packed: Tensor
    functions: Native | None
    """What computes with `packed`; None: oneDNN."""


def pack(weight_NI: Tensor, rows: int) -> PackedWeight:
    """The weight, laid out for products of that many rows; on CPU, in a type that `product_type` knows."""
    functions = compiled("linear") if rows <= MOST_ROWS and _known(weight_NI) else None
    if functions is not None:
        return PackedWeight(weight_NI, functions.pack(weight_NI), functions)
    wide = weight_NI.to(product_type(weight_NI))
    return PackedWeight(weight_NI, torch.ops.mkldnn._reorder_linear_weight(wide, rows), None)


def linear(x: Tensor, weight: PackedWeight, bias_N: Tensor | None) -> Tensor:
    """x W' + b, (..., N) from (..., I), without a graph; any number of rows."""
    outputs, inputs = weight.weight_NI.shape
    if weight.functions is not None:
        if x.numel() > MOST_ROWS * inputs or x.dtype != torch.bfloat16:
            return F.linear(x, weight.weight_NI, bias_N)
        return weight.functions.linear(x, weight.packed, bias_N, outputs)
    wide = x.to(weight.packed.dtype)
    bias = None if bias_N is None else bias_N.to(wide.dtype)
    return torch.ops.mkldnn._linear_pointwise(wide, weight.packed, bias, "none", [], "").to(x.dtype)


def product_type(weight: Tensor) -> torch.dtype:
    """The type in which products with `weight` are computed: its own, or float32 where this processor emulates it."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if weight.device.type != "cpu" or weight.dtype not in supported or not torch.backends.mkldnn.is_available():
        return weight.dtype
    return weight.dtype if supported[weight.dtype]() else torch.float32


def _known(weight_NI: Tensor) -> bool:
    return weight_NI.is_cpu and weight_NI.dtype == torch.bfloat16 and weight_NI.shape[1] % 32 == 0
