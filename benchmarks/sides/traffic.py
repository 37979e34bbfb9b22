"""The traffic between ranks: the bytes that each receives, by collective, and the bytes that FSDP2 must send.

Bytes are those of a ring: each of N ranks receives (N - 1) / N of the data in all-gather and reduce-scatter, and twice
that in all-reduce. A backend may move more: gloo implements reduce-scatter by all-reduce.
"""

from collections import Counter
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from togi.model.policy import body_of, unwrapped

KINDS = {
    "_allgather_base_": "gathered",
    "all_gather_into_tensor": "gathered",
    "_reduce_scatter_base_": "scattered",
    "reduce_scatter_tensor": "scattered",
    "allreduce_": "summed",
    "all_reduce": "summed",
    "allgather_": "agreed",
    "broadcast_": "agreed",
}
QUIET = ("wait_tensor", "barrier")


class Traffic(TorchDispatchMode):
    """Counts the bytes that this rank of `size` receives while the block lasts: weights that are `gathered`, gradients
    that are `scattered` sums or `summed` whole, and what ranks `agreed` on (counts, losses).

    Raises LookupError for a collective that it does not know.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.received: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and name not in QUIET:
            if name not in KINDS:
                raise LookupError(f"a collective that is not counted: {func}")
            self.received[KINDS[name]] += self._bytes(name, args)
        return func(*args, **(kwargs or {}))

    def _bytes(self, name: str, args: tuple[Any, ...]) -> int:
        others = self.size - 1
        if name == "_allgather_base_":  # output, input
            return others * size_of(args[1])
        if name == "_reduce_scatter_base_":
            return others * size_of(args[0])
        if name == "allgather_":  # outputs, inputs
            return others * size_of(args[1])
        if name == "reduce_scatter_tensor":
            return others * size_of(args[0]) // self.size
        return {"allreduce_": 2, "all_reduce": 2}.get(name, self.size) * others * size_of(args[0]) // self.size


def size_of(tensors: Any) -> int:
    """The bytes of a tensor, or of several tensors in lists."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(size_of, tensors))


def bound(module: Any, size: int, micro_batches: int) -> dict[str, int]:
    """Bytes that FSDP2 has each of `size` ranks receive in a step of so many micro-batches: the weights of each layer
    twice (forward and backward), those outside the layers once, and the gradients of all once.

    `module` is a whole `Policy`, whose weights are cut evenly.
    """
    body: Any = body_of(unwrapped(module.net))
    layers, whole = _weights(body.layers), _weights(module)
    return {
        "gathered": micro_batches * (whole + layers) * (size - 1) // size,
        "scattered": micro_batches * whole * (size - 1) // size,
    }


def _weights(module: nn.Module) -> int:
    return sum(size_of(param) for param in module.parameters())
