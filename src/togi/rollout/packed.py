"""Packs weights for products with few rows while a batch is sampled.

`togi.kernels.pack` explains why.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from togi.kernels import PackedWeight, linear, pack, product_type

MOST_BYTES = 2 * 1024**3
"""Larger models are not packed, because the packed copy takes more memory than it is worth."""

FEWEST_TOKENS = 32
"""Weights are not packed for shorter answers: packing costs about as much as three tokens of 32 rows."""


class PackedLinear(nn.Linear):
    """A linear layer that shares the parameters of the layer it replaces and may hold a packed copy of the weight."""

    packed: PackedWeight | None = None

    @classmethod
    def like(cls, linear: nn.Linear) -> "PackedLinear":
        """The replacement for `linear`."""
        new = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        new.weight, new.bias = linear.weight, linear.bias
        return new.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(input, self.weight, self.bias)
        return linear(input, self.packed, self.bias)


class Packing:
    """The linear layers of a twin (`sampling_model.shadow`), packed inside the outermost `with`."""

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
        if self._depth == 1:
            self.refresh()

    def refresh(self) -> None:
        """Packs the weights again, if they are packed. Call it after they have changed."""
        with torch.inference_mode():
            for layer in self.layers if self._depth else ():
                layer.packed = pack(layer.weight.detach(), self.rows)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        for layer in self.layers if self._depth == 0 else ():
            layer.packed = None


def can_pack(net: nn.Module) -> bool:
    """Whether to pack: only a model on CPU whose packed copy is not too large.

    This depends only on model and machine, so a resumed run chooses the same.
    """
    weights = [module.weight for module in net.modules() if type(module) is nn.Linear]
    if not weights or not torch.backends.mkldnn.is_available() or any(w.device.type != "cpu" for w in weights):
        return False
    types = {product_type(weight) for weight in weights}
    size = sum(weight.numel() * product_type(weight).itemsize for weight in weights)
    return types <= {torch.float32, torch.bfloat16, torch.float16} and size <= MOST_BYTES
