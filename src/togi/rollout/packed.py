"""Weights laid out for products of few rows, for as long as a batch is sampled.

A product on CPU may rearrange the weights at every call; few rows do not repay that. Packing does it once: in the
layout of `c/linear.c` where that computes such a product, else in oneDNN's own, by the operators that torch's
compiler uses for frozen weights. The products stay the same up to the order of their sums.

Where the processor has no products in a half type, torch emulates them (bfloat16 is 8 times slower than float32 on
AVX2). There the packed copy is float32: inputs are widened and results rounded to the half type, which is what a
product in that type with float32 sums does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from togi.kernels.native import MOST_ROWS, Native, native

MOST_BYTES = 2 * 1024**3
"""The packed copy of a larger model would take more memory than it is worth."""

FEWEST_TOKENS = 32
"""Packing costs about as much as three tokens of 32 rows; shorter answers do without."""


class PackedLinear(nn.Linear):
    """A linear layer that shares its parameters with the one it stands for and may hold a packed copy of the weight."""

    packed: Tensor | None = None
    native: Native | None = None
    """What computes with `packed`; None: oneDNN."""

    @classmethod
    def like(cls, linear: nn.Linear) -> "PackedLinear":
        """The layer that stands for `linear`."""
        new = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        new.weight, new.bias = linear.weight, linear.bias
        return new.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(input, self.weight, self.bias)
        if self.native is not None:
            if input.numel() > MOST_ROWS * self.in_features:
                return F.linear(input, self.weight, self.bias)
            return self.native.linear(input, self.packed, self.bias, self.out_features)
        wide = input.to(self.packed.dtype)
        bias = None if self.bias is None else self.bias.to(self.packed.dtype)
        return torch.ops.mkldnn._linear_pointwise(wide, self.packed, bias, "none", [], "").to(input.dtype)


class Packing:
    """The linear layers of a twin (`network.shadow`), packed while the outermost `with` lasts."""

    def __init__(self, twin: nn.Module, rows: int) -> None:
        self.rows = rows
        self._depth = 0
        self.layers: list[PackedLinear] = []
        for name, module in list(twin.named_modules()):
            if type(module) is nn.Linear:  # a subclass may compute something else
                layer = PackedLinear.like(module)
                twin.set_submodule(name, layer)
                self.layers.append(layer)

    def __enter__(self) -> None:
        self._depth += 1
        with torch.inference_mode():
            for layer in self.layers if self._depth == 1 else ():
                weight, functions = layer.weight.detach(), native()
                if functions is not None and functions.multiplies(weight) and self.rows <= MOST_ROWS:
                    layer.packed, layer.native = functions.pack(weight), functions
                    continue
                wide = weight.to(product_type(weight))
                layer.packed = torch.ops.mkldnn._reorder_linear_weight(wide, self.rows)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        for layer in self.layers if self._depth == 0 else ():
            layer.packed = layer.native = None


def product_type(weight: Tensor) -> torch.dtype:
    """The type in which products with `weight` are computed: its own, or float32 where this processor emulates it."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if weight.device.type != "cpu" or weight.dtype not in supported or not torch.backends.mkldnn.is_available():
        return weight.dtype
    return weight.dtype if supported[weight.dtype]() else torch.float32


def can_pack(net: nn.Module) -> bool:
    """Whether to pack: a model on CPU whose packed copy is not too large.

    Follows from model and machine alone, so that a resumed run chooses alike.
    """
    weights = [module.weight for module in net.modules() if type(module) is nn.Linear]
    if not weights or not torch.backends.mkldnn.is_available() or any(w.device.type != "cpu" for w in weights):
        return False
    types = {product_type(weight) for weight in weights}
    size = sum(weight.numel() * product_type(weight).itemsize for weight in weights)
    return types <= {torch.float32, torch.bfloat16, torch.float16} and size <= MOST_BYTES
