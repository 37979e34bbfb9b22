"""Calls for weights that are sent to a server without a folder, and for a server that sleeps during training:

    call               vllm                                       sglang and togi
    workers            GET /get_world_size                        GET /server_info; togi: /health
    meet               /init_weight_transfer_engine               /init_weights_update_group
    send               /start_weight_update, /update_weights,     /update_weights_from_distributed, one per part
                       /finish_weight_update, /reset_prefix_cache
    part               /shutdown_weight_transfer_engine           /destroy_weights_update_group
    sleep, wake        /sleep?level=1, /wake_up                   sglang: /release_ and /resume_memory_occupation
    asleep?            GET /is_sleeping                           sglang: GET /get_model_info, by a version of its own

Sources: docs.vllm.ai (0.32: training/weight_transfer, features/sleep_mode) and docs.sglang.io (0.5: sglang_for_rl).
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.client.wire_base import Broken, Call, count, fields, text

BUFFER = 2**30
"""Bytes of tensors that are sent together: a packed buffer of vLLM, or a part of an update of SGLang."""
ASLEEP, AWAKE = "togi-asleep", "togi-awake"
"""Versions of SGLang's weights by which togi marks whether it sleeps, since the server does not tell."""
TAGS = ["kv_cache", "weights"]


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A tensor to send: its name in a saved model, its type (`bfloat16`), its shape and its size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where `size` processes meet as the group `name`, the trainer as rank 0: at `address` and `port` for
    torch.distributed with `backend`, or by an NCCL id (`unique_id`, 128 bytes)."""

    name: str
    size: int
    backend: str = "gloo"
    address: str = ""
    port: int = 0
    unique_id: bytes = field(default=b"", repr=False)


def parts(forms: Sequence[TensorForm], most: int = BUFFER) -> list[list[TensorForm]]:
    """Tensors in order, cut into parts that end with the tensor that exceeds `most` bytes."""
    found: list[list[TensorForm]] = []
    size = most + 1
    for form in forms:
        if size > most:
            found.append([])
            size = 0
        found[-1].append(form)
        size += form.size
    return found


# --- transfer ---------------------------------------------------------------------------------------------------------


def workers_path(speaks: str) -> str:
    """The path under the server root that tells how many processes hold the weights; togi's own has one."""
    return {"vllm": "/get_world_size", "sglang": "/server_info"}.get(speaks, "/health")


def read_workers(value: Any, speaks: str) -> int:
    """The number of processes in a reply to GET `workers_path`. Raises Broken."""
    row = fields(value, "the reply")
    if speaks == "vllm":
        return _positive(row, "world_size")
    if speaks == "togi":
        return 1
    for key in ("dp_size", "pp_size"):
        if _positive(row, key, 1) > 1:
            raise Broken(f"{key} is {row[key]}; weights can only be sent to an SGLang server with {key} 1")
    return _positive(row, "tp_size", 1)


def _positive(row: Mapping[str, Any], key: str, default: Any = None) -> int:
    found = count(row.get(key, default))
    if not found:
        raise Broken(f"{key} is {row.get(key)!r}, not a number of processes")
    return found


def meet_call(meeting: Meeting, speaks: str) -> Call:
    """The order to join a meeting; the server's processes are ranks 1 and up."""
    place: dict[str, Any] = {"rank_offset": 1, "world_size": meeting.size}
    if speaks == "vllm":
        told = base64.b64encode(meeting.unique_id).decode()
        packed = {"packed": True, "packed_buffer_size_bytes": BUFFER, "packed_num_buffers": 2}
        return Call("/init_weight_transfer_engine", {"init_info": place | {"nccl_unique_id_b64": told} | packed}, True)
    where = {"master_address": meeting.address, "master_port": meeting.port}
    body = where | place | {"group_name": meeting.name, "backend": meeting.backend}
    return Call("/init_weights_update_group", body, at_root=True)


def part_call(meeting: Meeting, speaks: str) -> Call:
    """The order to leave a meeting."""
    if speaks == "vllm":
        return Call("/shutdown_weight_transfer_engine", {}, at_root=True)
    return Call("/destroy_weights_update_group", {"group_name": meeting.name}, at_root=True)


@dataclass(frozen=True, slots=True)
class Sending:
    """The orders of one update: `before`, then each of `parts` while its tensors are sent, then `after`."""

    before: tuple[Call, ...]
    parts: tuple[tuple[Call, list[TensorForm]], ...]
    after: tuple[Call, ...]


def sending(forms: Sequence[TensorForm], meeting: Meeting, mark: str, speaks: str) -> Sending:
    """The orders that make a server receive tensors as the weights of version `mark`."""
    if speaks == "vllm":
        names, dtypes, shapes = _told(forms)
        update = {"update_info": {"names": names, "dtype_names": dtypes, "shapes": shapes}}
        start, finish = _root("/start_weight_update"), _root("/finish_weight_update")
        whole = (Call("/update_weights", update, at_root=True), list(forms))
        return Sending((start,), (whole,), (finish, _root("/reset_prefix_cache")))
    every = parts(forms)
    bodies = [_distributed(each, meeting, mark if each is every[-1] else "") for each in every]
    path = "/update_weights_from_distributed"
    return Sending((), tuple((Call(path, body, True), each) for body, each in zip(bodies, every, strict=True)), ())


def _distributed(forms: Sequence[TensorForm], meeting: Meeting, mark: str) -> dict[str, Any]:
    """The body of one part; the last one has the version, and lets the server drop the keys of earlier weights."""
    names, dtypes, shapes = _told(forms)
    body = {"names": names, "dtypes": dtypes, "shapes": shapes, "group_name": meeting.name, "flush_cache": bool(mark)}
    return body | ({"weight_version": mark} if mark else {})


def _told(forms: Sequence[TensorForm]) -> tuple[list[str], list[str], list[list[int]]]:
    return [form.name for form in forms], [form.dtype for form in forms], [list(form.shape) for form in forms]


def _root(path: str, **body: Any) -> Call:
    return Call(path, body, at_root=True)


# --- sleep ------------------------------------------------------------------------------------------------------------


def sleep_calls(speaks: str) -> list[Call]:
    """The orders that free the memory of a server's weights and keys."""
    if speaks == "vllm":
        return [_root("/sleep?level=1")]
    return [_root("/release_memory_occupation", tags=TAGS), _version(ASLEEP)]


def wake_calls(speaks: str) -> list[Call]:
    """The orders that take the memory again. SGLang's weights are then undefined, until it gets others."""
    if speaks == "vllm":
        return [_root("/wake_up")]
    return [_root("/resume_memory_occupation", tags=TAGS), _version(AWAKE)]


def _version(mark: str) -> Call:
    return _root("/update_weight_version", new_version=mark, abort_all_requests=False)


def asleep_path(speaks: str) -> str:
    """The path under the server root that tells whether it sleeps; empty if the protocol has none."""
    return {"vllm": "/is_sleeping", "sglang": "/get_model_info"}.get(speaks, "")


def read_asleep(value: Any, speaks: str) -> bool:
    """Whether a server sleeps, from a reply to GET `asleep_path`. Raises Broken."""
    row = fields(value, "the reply")
    if speaks == "sglang":
        return text(row.get("weight_version"), "weight_version") == ASLEEP
    if not isinstance(row.get("is_sleeping"), bool):
        raise Broken(f"is_sleeping is {row.get('is_sleeping')!r}, not true or false")
    return bool(row["is_sleeping"])
