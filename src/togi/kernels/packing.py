"""Linear maps of few rows, with weights that are packed once for many calls.

A product on CPU may rearrange the weights in every call, which does not pay off for few rows. Packing does it only
once: into the layout of `c/linear.c` if that computes the product, else into oneDNN's, with the operators that torch's
compiler uses for frozen weights. The products stay the same up to the order of summation.

If the processor has no products in a half type, torch emulates them (on AVX2, bfloat16 is 8 times slower than float32).
The packed copy is then float32: inputs are widened and results rounded to the half type, which is equivalent to a
product in that type with float32 sums.

Shapes: R rows, N outputs, I inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from togi.kernels.dispatch import compiled
from togi.kernels.native import Native

MOST_ROWS = 64
"""torch computes products of more rows: they are no longer bound by reading the weights."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight (N, I) and a copy of it in another layout."""

    weight_NI: Tensor
    packed: Tensor
    functions: Native | None
    """The compiled functions that read `packed`; None: oneDNN."""


def pack(weight_NI: Tensor, rows: int) -> PackedWeight:
    """Packs a weight on CPU for products of that many rows, in the type of `product_type`."""
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
    """The type in which products with `weight` are computed: its own, or float32 if torch would emulate its own."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if weight.device.type != "cpu" or weight.dtype not in supported or not torch.backends.mkldnn.is_available():
        return weight.dtype
    return weight.dtype if supported[weight.dtype]() else torch.float32


def _known(weight_NI: Tensor) -> bool:
    return weight_NI.is_cpu and weight_NI.dtype == torch.bfloat16 and weight_NI.shape[1] % 32 == 0
