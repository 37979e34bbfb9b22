"""Computes the weights to save from a trained network, one part at a time: merges adapters and dequantises 4-bit
weights. The trained network stays unchanged, and there is never a complete second one in memory.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from togi.model.adapter import beneath, is_adapted, lora_library
from togi.model.load import quantised_library

Parts = Mapping[str, Callable[[], nn.Module]]
Whole = Callable[[Tensor], Tensor]
"""Gives the whole tensor of a weight, of which this process may have only a part."""


class SavedNetwork:
    """The network as which `net` is saved in `dtype`. `plain` is that network without memory for its weights: its
    parts, their names, its configuration. Sums with an adapter are computed in `dtype` if that is wider than the base
    weights, so that they are not rounded. `whole` is called for each weight of `net` that is read."""

    def __init__(self, net: Any, dtype: torch.dtype, whole: Whole = lambda weight: weight) -> None:
        self.base = beneath(net)
        self.dtype = dtype
        self._whole = whole
        wide = torch.promote_types(self.base.dtype, dtype)
        self._parts = _changed(net, wide, whole)
        self.plain = _without_memory(net)
        named = list(self.plain.named_parameters(remove_duplicate=False))
        first = {id(weight): name for name, weight in reversed(named)}
        self._same = {name: first[id(weight)] for name, weight in named}
        self._made: tuple[str, Any] = ("", None)

    def weight(self, name: str) -> Tensor:
        """A weight of `plain`, before rounding to `dtype`. Only the last computed part is cached, so request the
        weights of one part consecutively."""
        name = self._same.get(name, name)
        path, _, own = name.rpartition(".")
        changed = next((at for at in _above(path) if at in self._parts), None)
        if changed is None:
            return self._whole(getattr(self.base.get_submodule(path), own)).detach()
        if self._made[0] != changed:
            self._made = ("", None)  # so that there are never two in memory
            self._made = (changed, self._parts[changed]())
        part = self._made[1].get_submodule(path[len(changed) + 1 :])
        return getattr(part, own).detach()

    def saved(self, name: str) -> Tensor:
        """A weight of `plain` as it is saved."""
        weight = self.weight(name)
        return weight.to(self.dtype) if weight.is_floating_point() else weight

    def shapes(self) -> dict[str, Tensor]:
        """The weights to save, by their names in `plain`, without memory; tied weights are the same tensor."""
        state = self.plain.state_dict(keep_vars=True)
        kinds = {id(weight): self.dtype if weight.is_floating_point() else weight.dtype for weight in state.values()}
        made = {id(w): torch.empty(w.shape, dtype=kinds[id(w)], device="meta") for w in state.values()}
        return {name: made[id(weight)] for name, weight in state.items()}


def _changed(net: Any, dtype: torch.dtype, whole: Whole) -> Parts:
    """Functions that build the parts whose saved form differs from that in `net`, by name."""
    if is_adapted(net):
        return lora_library().merged_parts(net, dtype, whole)
    return quantised_library().written_out(net, dtype) if getattr(net, "is_loaded_in_4bit", False) else {}


def _above(path: str) -> list[str]:
    """A part's name and those of the parts that contain it."""
    names = path.split(".")
    return [".".join(names[:count]) for count in range(len(names), 0, -1)]


def _without_memory(net: Any) -> Any:
    """`net` with its adapter merged and 4-bit layers made plain, without memory for its weights."""
    shells: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device="meta"), requires_grad=False)
        for weight in net.parameters()
    }
    states = [getattr(part, "quant_state", None) for part in net.modules()]
    twin = copy.deepcopy(net, shells | {id(state): state for state in states if state is not None})
    plain = twin.unload() if is_adapted(net) else twin
    if getattr(plain, "is_loaded_in_4bit", False):
        quantised_library().without_bits(plain)
    return plain
