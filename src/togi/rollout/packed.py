"""Weights laid out for products of few rows, for as long as a batch is sampled.

A product on CPU may rearrange the weights at every call; few rows do not repay that. Packing does it once, in oneDNN's
own layout, through the operators that torch's compiler uses for frozen weights. The products stay the same up to the
order of their sums; the type stays that of the weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_BYTES = 2 * 1024**3
"""The packed copy of a larger model would take more memory than it is worth."""

FEWEST_TOKENS = 32
"""Packing costs about as much as three tokens of 32 rows; shorter answers do without."""


class PackedLinear(nn.Linear):
    """A linear layer that shares its parameters with the one it stands for and may hold a packed copy of the weight."""

    packed: Tensor | None = None

    @classmethod
    def like(cls, linear: nn.Linear) -> "PackedLinear":
        """The layer that stands for `linear`."""
        new = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        new.weight, new.bias = linear.weight, linear.bias
        return new.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


class Packing:
    """The linear layers of a twin (`network.shadow`), packed while `with` lasts."""

    def __init__(self, twin: nn.Module, rows: int) -> None:
        self.rows = rows
        self.layers: list[PackedLinear] = []
        for name, module in list(twin.named_modules()):
            if type(module) is nn.Linear:  # a subclass may compute something else
                layer = PackedLinear.like(module)
                twin.set_submodule(name, layer)
                self.layers.append(layer)

    def __enter__(self) -> None:
        with torch.inference_mode():
            for layer in self.layers:
                layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), self.rows)

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.packed = None


def can_pack(net: nn.Module) -> bool:
    """Whether to pack: a model on CPU that is not too large to be there twice, in a type that oneDNN computes on this
    machine. Follows from model and machine alone, so that a resumed run chooses alike."""
    weights = [module.weight for module in net.modules() if type(module) is nn.Linear]
    if not weights or not torch.backends.mkldnn.is_available() or any(w.device.type != "cpu" for w in weights):
        return False
    known = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        known.add(torch.bfloat16)
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return all(weight.dtype in known for weight in weights) and size <= MOST_BYTES
