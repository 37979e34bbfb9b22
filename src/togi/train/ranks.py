"""Several processes that train together, over torch.distributed: gloo for small values and the CPU, NCCL for CUDA."""

import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from togi.core.errors import InputError
from togi.core.ranks import Ranks

Value = TypeVar("Value")
TIMEOUT = timedelta(hours=2)
"""How long a rank waits for another live rank. The parent notices a dead one at once."""


class RankGroup(Ranks):
    """`size` processes; values travel as pickles over gloo, gradients over the device's own backend.

    `mesh` has one dimension, on the training device.
    """

    def __init__(self, rank: int, size: int, mesh: DeviceMesh) -> None:
        self.rank = rank
        self.size = size
        self.mesh = mesh

    def gather(self, value: Value) -> list[Value]:
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def on_first_rank(self, make: Callable[[], Value]) -> Value:
        box = [make() if self.first else None]
        distributed.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        self.gather(None)

    def sum_gradients(self, params: Iterable[Any]) -> None:
        for param in params:
            if not isinstance(param, DTensor):
                # a rank whose micro-batches did not use the parameter takes part with zeros
                param.grad = torch.zeros_like(param) if param.grad is None else param.grad
                distributed.all_reduce(param.grad)


def join(rank: int, size: int, rendezvous: str) -> RankGroup:
    """Joins the other ranks at `rendezvous`, a URL for torch.distributed such as file:///path.

    Raises InputError if the machine has CUDA devices, but fewer than ranks.
    """
    kind = "cpu"
    if torch.cuda.is_available():
        kind, devices = "cuda", torch.cuda.device_count()
        if devices < size:
            raise InputError(f"processes is {size}, but this machine has {devices} CUDA devices: one process needs one")
        torch.cuda.set_device(rank)
    elif sys.platform == "linux":
        # ranks of one machine meet on it; looking the machine's name up fails where it has no network
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=size, timeout=TIMEOUT)
    return RankGroup(rank, size, init_device_mesh(kind, (size,)))
