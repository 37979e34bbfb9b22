"""The tensors of a checkpoint as safetensors files, read completely or only for the rows of a rank.

    weights.safetensors                   of one process: all tensors
    weights-00001-of-00002.safetensors    of rank 0 of two: its rows of sharded tensors, and all unsharded tensors

The header of a rank's file contains its rows: {"rows": '{"NAME": [start, stop, rows of the whole tensor]}'}. So a
checkpoint can be read by any number of ranks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from togi.core.ranks import Ranks

Rows = tuple[int, int]


def file_name(kind: str, rank: int, size: int) -> str:
    """The file name of rank `rank` of `size` for its tensors of a kind."""
    return f"{kind}.safetensors" if size == 1 else f"{kind}-{rank + 1:05d}-of-{size:05d}.safetensors"


def write(path: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Writes this rank's part. Only rank 0 writes tensors that are not sharded."""
    kept: dict[str, Tensor] = {}
    stated: dict[str, tuple[int, int, int]] = {}
    for name, tensor in tensors.items():
        rows = rows_of(tensor)
        if rows is None:
            if ranks.first:
                kept[name] = tensor.contiguous()
        elif rows[0] < rows[1]:
            kept[name] = local(tensor).contiguous()
            stated[name] = (*rows, tensor.shape[0])
    save_file(kept, path, {"rows": json.dumps(stated, sort_keys=True)} if ranks.several else None)


class Stored:
    """The tensors of one kind of a checkpoint. `shapes` are those of the whole tensors."""

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, list[tuple[Any, Rows]]] = {}
        for rank in range(size):
            handle = safe_open(folder / file_name(kind, rank, size), framework="pt")
            stated = json.loads((handle.metadata() or {}).get("rows", "{}"))
            for name in handle.keys():  # noqa: SIM118 (a handle is not a mapping)
                shape = tuple(handle.get_slice(name).get_shape())
                start, stop, count = stated.get(name, (0, shape[0] if shape else 1, shape[0] if shape else 1))
                self.shapes[name] = (count, *shape[1:]) if shape else ()
                self._parts.setdefault(name, []).append((handle, (start, stop)))

    def read(self, name: str, rows: Rows | None = None) -> Tensor:
        """A tensor, or its rows [start, stop)."""
        parts = self._parts[name]
        if len(parts) == 1 and (rows is None or not self.shapes[name]):
            return parts[0][0].get_tensor(name)
        wanted = rows or (0, self.shapes[name][0])
        found = []
        for handle, (start, stop) in parts:
            first, last = max(start, wanted[0]), min(stop, wanted[1])
            if first < last:
                found.append(handle.get_slice(name)[first - start : last - start])
        if not found:  # a rank that holds no row of a short tensor
            return parts[0][0].get_slice(name)[0:0]
        return found[0] if len(found) == 1 else torch.cat(found)


# --- one rank's rows of a tensor --------------------------------------------------------------------------------------


def rows_of(tensor: Tensor) -> tuple[int, int] | None:
    """The rows [start, stop) of a sharded tensor on this rank; None for a tensor that is not sharded."""
    if not isinstance(tensor, DTensor):
        return None
    count, size = tensor.shape[0], tensor.device_mesh.size()
    step = -(-count // size)  # as torch.chunk does: the last ranks may hold fewer rows, or none
    start = min(tensor.device_mesh.get_local_rank() * step, count)
    return start, min(start + step, count)


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, not copied."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(rows: Tensor, example: Tensor) -> Tensor:
    """This rank's rows as a tensor with the sharding of `example`."""
    if not isinstance(example, DTensor):
        return rows
    return DTensor.from_local(
        rows,
        example.device_mesh,
        example.placements,
        run_check=False,
        shape=example.shape,
        stride=example.stride(),
    )
