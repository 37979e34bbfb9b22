"""Weights laid out for products of few rows, for as long as a batch is sampled.

`togi.kernels.pack` says why.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from togi.kernels import PackedWeight, linear, pack, product_type

MOST_BYTES = 2 * 1024**3
"""The packed copy of a larger model would take more memory than it is worth."""

FEWEST_TOKENS = 32
"""Packing costs about as much as three tokens of 32 rows; shorter answers do without."""


class PackedLinear(nn.Linear):
    """A linear layer that shares its parameters with the one it stands for and may hold a packed copy of the weight."""

    packed: PackedWeight | None = None

    @classmethod
    def like(cls, linear: nn.Linear) -> "PackedLinear":
        """The layer that stands for `linear`."""
        new = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        new.weight, new.bias = linear.weight, linear.bias
        return new.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(input, self.weight, self.bias)
        return linear(input, self.packed, self.bias)


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
                layer.packed = pack(layer.weight.detach(), self.rows)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        for layer in self.layers if self._depth == 0 else ():
            layer.packed = None


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
