"""Training on several processes with torch.distributed: gloo for small values and the CPU, NCCL for CUDA."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlparse

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from togi.core.errors import InputError
from togi.core.ranks import Ranks

Value = TypeVar("Value")
TIMEOUT = timedelta(hours=2)
"""How long a rank waits for another live rank. The parent process notices a dead one at once."""
GATHERING = timedelta(minutes=5)
"""How long a rank waits for the others at a prepared rendezvous."""
PREPARED = "env://"
PAUSE = 0.2


class RankGroup(Ranks):
    """`size` processes. Values are sent as pickles over gloo, gradients over the device's own backend.

    `mesh` has one dimension, on the training device. The other ranks get rank 0's orders through `store`.
    """

    def __init__(self, rank: int, size: int, mesh: DeviceMesh, store: Store | None = None) -> None:
        self.rank = rank
        self.size = size
        self.mesh = mesh
        self._store = store
        self._orders = 0

    def tell(self, order: Any) -> None:
        if self._store is not None:
            self._store.set(f"order-{self._orders}", json.dumps(order))
            self._orders += 1

    def hear(self, stopped: Callable[[], bool]) -> Any:
        assert self._store is not None
        key = f"order-{self._orders}"
        while not self._store.check([key]):
            if stopped():
                return None
            time.sleep(PAUSE)
        self._orders += 1
        return json.loads(self._store.get(key))

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
                # a rank whose micro-batches did not use the parameter contributes zeros
                param.grad = torch.zeros_like(param) if param.grad is None else param.grad
                distributed.all_reduce(param.grad)


def join(rank: int, size: int, meet_at: str, local: int) -> RankGroup:
    """Joins the other ranks at `meet_at`, a URL for torch.distributed such as file:///path; env:// is a rendezvous
    prepared by a launcher such as torchrun. `local` is the index of the rank's device on its machine.

    Raises InputError if the machine has CUDA devices but none for this rank, and if ranks do not join in time.
    """
    kind = "cpu"
    if torch.cuda.is_available():
        kind, devices = "cuda", torch.cuda.device_count()
        if devices <= local:
            raise InputError(
                f"rank {rank} of {size} needs its own CUDA device, but its machine has {devices} for at least "
                f"{local + 1} ranks: lower `processes`"
            )
        torch.cuda.set_device(local)
    elif sys.platform == "linux" and _on_this_machine(meet_at):
        # ranks of one machine use the loopback device; looking up the machine's name fails without a network
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    store = _prepared(rank, size) if meet_at == PREPARED else None
    distributed.init_process_group(
        backend,
        init_method=None if store else meet_at,
        store=store and PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    return RankGroup(rank, size, init_device_mesh(kind, (size,)), store)


def _on_this_machine(meet_at: str) -> bool:
    host = os.environ["MASTER_ADDR"] if meet_at == PREPARED else urlparse(meet_at).hostname or "localhost"
    return host in ("localhost", "::1") or host.startswith("127.")


def _prepared(rank: int, size: int) -> Store:
    """The store of a prepared rendezvous. Returns when all ranks have joined."""
    store, _, _ = next(iter(rendezvous(PREPARED, rank, size, timeout=GATHERING)))
    here = PrefixStore("togi", store)
    here.set(f"here-{rank}", "")
    end = time.monotonic() + GATHERING.total_seconds()
    while missing := [other for other in range(size) if not here.check([f"here-{other}"])]:
        if time.monotonic() > end:
            raise InputError(f"of {size} ranks these did not join: {', '.join(map(str, missing))}; see their output")
        time.sleep(PAUSE)
    return here
