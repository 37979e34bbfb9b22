"""The connections between processes over which weights travel as tensors: the trainer's end, and the end of togi's own
server.

SGLang and togi join a group of torch.distributed, whose members find each other through a TCP store; vLLM joins an NCCL
communicator by its id. (vLLM also has a TCP store, but its values are pickles of vLLM's own classes, so togi does not
use it.) Tensors go in the order of the request: one by one, or to vLLM packed into buffers of bytes.
"""

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import urlparse

import torch
from torch import Tensor, distributed
from torch.cuda import nccl
from torch.distributed.distributed_c10d import PrefixStore

from togi.client.transfer import WireBroken
from togi.client.wire_transfer import BUFFER, Meeting, TensorForm
from togi.core.errors import InputError

JOINING = timedelta(minutes=2)
"""How long a process waits for the others to join."""
CONNECTING = 10.0
"""Seconds in which the store of a group must be reached."""
SENDING = timedelta(minutes=10)
"""How long a tensor may take."""
FIRST_DEVICE = {"gloo": "cpu", "nccl": "cuda"}
"""The first device of each backend, which torch writes into the keys of a group's store."""
FAILURES = (RuntimeError, OSError, ValueError)
"""What torch raises for a group that cannot form or has lost a member."""

Source = Callable[[], Iterator[tuple[str, Tensor]]]
"""Yields the weights to send; every call yields the same names in the same order."""


class Link(Protocol):
    """The connections of one meeting."""

    def join(self) -> None: ...
    def broadcast(self, tensor: Tensor) -> None: ...
    def close(self) -> None: ...


class Group:
    """A group of torch.distributed outside its default group. `rank` 0 keeps the store at `address`; `port` 0 chooses
    a free port. Compatible with groups that torch's own helpers create under the same name."""

    def __init__(self, name: str, address: str, port: int, rank: int, size: int, backend: str = "gloo") -> None:
        self.name, self.rank, self.size, self.backend = name, rank, size, backend
        self._host = address
        if rank:  # rank 0 already keeps the store; torch would try for minutes to reach it
            with socket.create_connection((address, port), CONNECTING) as here:
                self._host = str(here.getsockname()[0])
        stores: Any = distributed.TCPStore  # type: ignore[attr-defined]
        self._store = stores(address, port, size, rank == 0, timeout=JOINING, wait_for_workers=False)
        self.port = self._store.port
        self._group: Any = None

    def join(self) -> None:
        """Returns when all members have joined. Raises RuntimeError."""
        store = PrefixStore(self.name, self._store)
        store = PrefixStore(f"{FIRST_DEVICE[self.backend]}/", PrefixStore(f"{self.name}/", store))
        if self.backend == "nccl":
            members: Any = distributed.ProcessGroupNCCL
            self._group = members(store, self.rank, self.size, SENDING)
            return
        members = distributed.ProcessGroupGloo
        options = members._Options()
        options._timeout, options._devices = SENDING, [members.create_device(hostname=self._host)]
        self._group = members(store, self.rank, self.size, options)

    def broadcast(self, tensor: Tensor) -> None:
        """Sends a tensor from rank 0, or receives it. Raises RuntimeError."""
        if (group := self._group) is None:
            raise RuntimeError("the group was left")
        group.broadcast(tensor if self.backend == "nccl" else tensor.cpu(), 0).wait()

    def close(self) -> None:
        """Leaves the group. A thread that sends or receives ends when the others have left, too."""
        self._group = None


class Communicator:
    """An NCCL communicator of `size` processes by an id of its own, of which this one is rank 0; for vLLM, whose
    workers begin with the sum of one number."""

    def __init__(self, size: int) -> None:
        self.size, self.id = size, bytes(nccl.unique_id())
        self._comm: Any = None

    def join(self) -> None:
        """Returns when all have joined. Raises RuntimeError."""
        self._comm = nccl.init_rank(self.size, self.id, 0)
        nccl.all_reduce([torch.zeros(1, device="cuda")], comms=[self._comm])
        torch.cuda.synchronize()

    def broadcast(self, tensor: Tensor) -> None:
        """Sends a tensor. Raises RuntimeError."""
        nccl.broadcast([tensor], comms=[self._comm])
        torch.cuda.synchronize()

    def close(self) -> None:
        """Forgets the communicator."""
        self._comm = None


def open_link(speaks: str, base: str, size: int, device: torch.device) -> tuple[Link, Meeting]:
    """The link to a server's processes, and where they find it. Raises InputError if vLLM should get weights from a
    processor, which NCCL does not support."""
    name = f"togi-{time.time_ns():x}"
    if speaks == "vllm":
        if device.type != "cuda":
            raise InputError(
                f"vLLM receives weights over NCCL, which needs a CUDA device, but the policy is trained on {device}; "
                "use engine.publish: disk"
            )
        communicator = Communicator(size)
        return communicator, Meeting(name, size, "nccl", unique_id=communicator.id)
    backend = "nccl" if speaks == "sglang" and device.type == "cuda" else "gloo"
    place = urlparse(base)
    address = local_address(place.hostname or "127.0.0.1", place.port or 80)
    group = Group(name, address, 0, 0, size, backend)
    return group, Meeting(name, size, backend, address, group.port)


def _reason(error: Exception) -> str:
    """The reason in an error of torch, without its place in torch's sources."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"^\[[^]]*] *", "", lines[0]).partition(". ")[0]


def local_address(host: str, port: int) -> str:
    """The address by which `host` reaches this machine. Raises OSError for an unknown host."""
    kind, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        return str(probe.getsockname()[0])


# --- the trainer ------------------------------------------------------------------------------------------------------


class Sender:
    """The trainer's end: sends what `source` yields, from `device`. `opener` makes its links."""

    def __init__(
        self,
        device: torch.device,
        opener: Callable[[str, str, int, torch.device], tuple[Link, Meeting]] = open_link,
    ) -> None:
        self.device = device
        self.source: Source = lambda: iter(())
        self._opener = opener
        self._link: Link | None = None
        self._packed = False
        self._left: Iterator[tuple[str, Tensor]] = iter(())
        self._forms: list[TensorForm] = []

    def load(self, forms: list[TensorForm], source: Source) -> None:
        """Sends these tensors from now on; `forms` describes what `source` yields."""
        self._forms, self.source = forms, source

    def forms(self) -> list[TensorForm]:
        """The tensors to send, in order. The next `send` begins with the first."""
        self._left = self.source()
        return self._forms

    def open(self, speaks: str, base: str, size: int) -> Meeting:
        """Prepares a meeting. Raises InputError if there can be none."""
        self.close()
        try:
            self._link, meeting = self._opener(speaks, base, size, self.device)
        except FAILURES as error:
            raise InputError(
                f"{base}: weights cannot be sent there: {_reason(error)}; use engine.publish: disk"
            ) from None
        self._packed = speaks == "vllm"
        return meeting

    def join(self) -> None:
        """Returns when all processes have joined. Raises WireBroken."""
        self._do(self._link, lambda link: link.join())

    def send(self, forms: Sequence[TensorForm]) -> None:
        """Sends the next tensors. Raises WireBroken."""
        link, left = self._link, self._left
        tensors = (_next(left, form) for form in forms)
        for tensor in packed(tensors) if self._packed else tensors:
            self._do(link, lambda link, tensor=tensor: link.broadcast(tensor))

    def close(self) -> None:
        """Leaves the meeting."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _do(self, link: Link | None, work: Callable[[Link], None]) -> None:
        if link is None or link is not self._link:  # closed, and perhaps opened again, by another thread
            raise WireBroken("the connection was closed")
        try:
            work(link)
        except FAILURES as error:
            raise WireBroken(_reason(error)) from None


def _next(left: Iterator[tuple[str, Tensor]], form: TensorForm) -> Tensor:
    name, tensor = next(left)
    assert (name, tuple(tensor.shape)) == (form.name, form.shape), f"{name} came in place of {form.name}"
    return tensor.detach().contiguous()


def packed(tensors: Iterator[Tensor], most: int = BUFFER) -> Iterator[Tensor]:
    """The bytes (uint8) of tensors in order, in buffers that end with the tensor that exceeds `most` bytes."""
    held: list[Tensor] = []
    size = 0
    for tensor in tensors:
        held.append(tensor.reshape(-1).view(torch.uint8))
        size += held[-1].numel()
        if size > most:
            yield torch.cat(held)
            held, size = [], 0
    if held:
        yield torch.cat(held)


# --- togi's server ----------------------------------------------------------------------------------------------------


class Receiver:
    """The end of togi's own server: receives weights that fit the parameters `own`. A server is in one group."""

    def __init__(self, own: Mapping[str, Tensor]) -> None:
        self._own = own
        self._group: Group | None = None

    def join(self, meeting: Meeting, rank: int) -> None:
        """Joins the trainer's group. Raises InputError if it cannot."""
        self.leave("")
        if meeting.backend != "gloo":
            raise InputError(f"backend: found {meeting.backend!r}; togi serve receives weights over gloo")
        try:
            group = Group(meeting.name, meeting.address, meeting.port, rank, meeting.size)
            group.join()
        except FAILURES as error:
            raise InputError(f"group {meeting.name} cannot be joined: {_reason(error)}") from None
        self._group = group

    def receive(self, name: str, forms: Sequence[tuple[str, str, Sequence[int]]]) -> dict[str, Tensor]:
        """The tensors that the trainer sends; `forms` are their names, types and shapes. Raises InputError, before
        anything is received, if they do not fit, and if the connection breaks."""
        group = self._group
        if group is None or group.name != name:
            raise InputError(f"group_name: this server is not in a group {name!r}; POST /init_weights_update_group")
        shells = {each: self._shell(each, dtype, shape) for each, dtype, shape in forms}
        try:
            for tensor in shells.values():
                group.broadcast(tensor)
        except FAILURES as error:
            self.leave(name)
            raise InputError(f"group {name} broke: {_reason(error)}") from None
        return shells

    def leave(self, name: str) -> None:
        """Leaves the group `name`, or any if that is empty."""
        if self._group is not None and name in ("", self._group.name):
            self._group.close()
            self._group = None

    def _shell(self, name: str, dtype: str, shape: Sequence[int]) -> Tensor:
        own = self._own.get(name)
        if own is None or tuple(own.shape) != tuple(shape):
            shown = "has no such weight" if own is None else f"has the shape {tuple(own.shape)}"
            raise InputError(f"{name}, shape {tuple(shape)}: the served model {shown}; use engine.publish: disk")
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise InputError(f"{name}: dtype: found {dtype!r}, allowed are torch's names, such as bfloat16")
        return torch.empty(tuple(shape), dtype=kind)
