"""Optimisers with float32 master weights, for bfloat16 weights or an optimiser state on the host.

Buckets are updated one after the other, so that only one bucket of gradients is duplicated at a time.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

BUCKET = 2**26  # elements whose gradients are in float32 at the same time: 256 MiB

Groups = list[dict[str, Any]]


class MasterWeightOptimizer(Optimizer):
    """An optimiser over float32 master weights on device `home`, for narrower parameters or those on another device.

    `make` builds the inner optimiser for some parameter groups. A parameter's state is that of the inner optimiser,
    plus the master weight under "master".
    """

    def __init__(self, groups: Groups, make: Callable[[Groups], Optimizer], home: torch.device) -> None:
        super().__init__(groups, {})
        self._buckets = [_Bucket(self.param_groups, members, make, home) for members in _cut(self.param_groups)]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of masters and parameters, at the rates of `param_groups`."""
        for bucket in self._buckets:
            bucket.step(self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The usual state of an optimiser: {"state": {parameter number: its tensors}, "param_groups": ...}."""
        found = super().state_dict()
        numbers = self._numbers()
        state = {
            numbers[id(param)]: {**inner, "master": master.detach()}
            for bucket in self._buckets
            for param, master, inner in bucket.states()
        }
        return {**found, "state": dict(sorted(state.items()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        state = state_dict["state"]
        numbers = self._numbers()
        for bucket in self._buckets:
            bucket.load([state[numbers[id(param)]] for param in bucket.params])

    def _numbers(self) -> dict[int, int]:
        params = [param for group in self.param_groups for param in group["params"]]
        return {id(param): number for number, param in enumerate(params)}


class _Bucket:
    """Some parameters, their master weights and their inner optimiser."""

    def __init__(
        self, groups: Groups, members: list[tuple[int, Parameter]], make: Callable[[Groups], Optimizer], home: Any
    ) -> None:
        self.params = [param for _, param in members]
        self.masters = [Parameter(param.detach().to(home, torch.float32, copy=True)) for param in self.params]
        self.groups = list(dict.fromkeys(number for number, _ in members))
        inner = [
            {**groups[n], "params": [m for (g, _), m in zip(members, self.masters, strict=True) if g == n]}
            for n in self.groups
        ]
        self.inner = make(inner)

    def step(self, groups: Groups) -> None:
        for number, group in zip(self.groups, self.inner.param_groups, strict=True):
            group["lr"] = groups[number]["lr"]
        for param, master in zip(self.params, self.masters, strict=True):
            master.grad = None if param.grad is None else param.grad.to(master.device, master.dtype)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        for param, master in zip(self.params, self.masters, strict=True):
            param.copy_(master)

    def states(self) -> Iterable[tuple[Parameter, Parameter, dict[str, Any]]]:
        numbered = self.inner.state_dict()["state"]
        order = [id(m) for group in self.inner.param_groups for m in group["params"]]
        for param, master in zip(self.params, self.masters, strict=True):
            yield param, master, numbered.get(order.index(id(master)), {})

    @torch.no_grad()
    def load(self, states: list[dict[str, Any]]) -> None:
        order = [id(m) for group in self.inner.param_groups for m in group["params"]]
        inner = {}
        for master, state in zip(self.masters, states, strict=True):
            rest = {key: value for key, value in state.items() if key != "master"}
            master.copy_(state["master"])
            if rest:
                inner[order.index(id(master))] = rest
        self.inner.load_state_dict({"state": inner, "param_groups": self.inner.state_dict()["param_groups"]})


def _cut(groups: Groups) -> list[list[tuple[int, Parameter]]]:
    """(group index, parameter) in order, split into buckets."""
    buckets: list[list[tuple[int, Parameter]]] = [[]]
    size = 0
    for number, group in enumerate(groups):
        for param in group["params"]:
            if buckets[-1] and size + param.numel() > BUCKET:
                buckets.append([])
                size = 0
            buckets[-1].append((number, param))
            size += param.numel()
    return buckets
