"""The tensors of a checkpoint as safetensors files, read completely or only for the part of a rank.

    weights.safetensors                   of one process: all tensors
    weights-00001-of-00002.safetensors    of rank 0 of two: its part of sharded tensors, and all unsharded tensors

The header of a rank's file says which part it has: {"rows": '{"NAME": [start, stop, size of the whole tensor]}'}, along
the first dimension, or along the one whose number follows. So a checkpoint can be read by any number of ranks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from togi.core.ranks import Ranks

Part = tuple[int, int, int]
"""A dimension of a tensor, and its indices from the first to before the last."""


def file_name(kind: str, rank: int, size: int) -> str:
    """The file name of rank `rank` of `size` for its tensors of a kind."""
    return f"{kind}.safetensors" if size == 1 else f"{kind}-{rank + 1:05d}-of-{size:05d}.safetensors"


def write(path: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Writes this rank's part. Only rank 0 writes tensors that are not sharded."""
    kept: dict[str, Tensor] = {}
    stated: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        part = part_of(tensor)
        if part is None:
            if ranks.first:
                kept[name] = tensor.contiguous()
            continue
        dim, start, stop = part
        if start < stop:
            kept[name] = local(tensor).contiguous()
            stated[name] = (start, stop, tensor.shape[dim], *((dim,) if dim else ()))
    save_file(kept, path, {"rows": json.dumps(stated, sort_keys=True)} if ranks.several else None)


class Stored:
    """The tensors of one kind of a checkpoint. `shapes` are those of the whole tensors."""

    def __init__(self, folder: Path, kind: str, size: int) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, list[tuple[Any, Part | None]]] = {}
        for rank in range(size):
            handle = safe_open(folder / file_name(kind, rank, size), framework="pt")
            stated = json.loads((handle.metadata() or {}).get("rows", "{}"))
            for name in handle.keys():  # noqa: SIM118 (a handle is not a mapping)
                shape, part = list(handle.get_slice(name).get_shape()), None
                if name in stated:
                    start, stop, count, *dim = stated[name]
                    part = (dim[0] if dim else 0, start, stop)
                    shape[part[0]] = count
                self.shapes[name] = tuple(shape)
                self._parts.setdefault(name, []).append((handle, part))

    def read(self, name: str, part: Part | None = None) -> Tensor:
        """A tensor, or a part of it."""
        shape, wanted = self.shapes[name], _slices(self.shapes[name], part)
        found: Tensor | None = None
        for handle, own in self._parts[name]:
            stored = _slices(shape, own)
            if stored == wanted:
                return handle.get_tensor(name)
            both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(stored, wanted, strict=True)]
            if any(at.start >= at.stop for at in both):
                continue
            read = handle.get_slice(name)[tuple(_within(both, stored))]
            if both == wanted:
                return read
            whole = read.new_empty([at.stop - at.start for at in wanted]) if found is None else found
            whole[tuple(_within(both, wanted))] = read
            found = whole
        if found is None:  # a rank that holds no row of a short tensor
            return self._parts[name][0][0].get_slice(name)[0:0]
        return found


def _slices(shape: tuple[int, ...], part: Part | None) -> list[slice]:
    """The indices of a part along all dimensions of a tensor with this shape; None: of the whole tensor."""
    every = [slice(0, size) for size in shape]
    if part is not None:
        every[part[0]] = slice(part[1], part[2])
    return every


def _within(inner: list[slice], outer: list[slice]) -> list[slice]:
    """The indices `inner`, counted from the beginning of `outer`."""
    return [slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True)]


# --- one rank's part of a tensor --------------------------------------------------------------------------------------


def part_of(tensor: Tensor) -> Part | None:
    """This rank's part of a sharded tensor; None for a tensor that is not sharded."""
    if not isinstance(tensor, DTensor):
        return None
    (placement,) = tensor.placements
    assert isinstance(placement, Shard)
    count, size = tensor.shape[placement.dim], tensor.device_mesh.size()
    step = -(-count // size)  # as torch.chunk does: the last ranks may hold fewer rows, or none
    start = min(tensor.device_mesh.get_local_rank() * step, count)
    return placement.dim, start, min(start + step, count)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, not copied."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(part: Tensor, example: Tensor) -> Tensor:
    """This rank's part as a tensor with the sharding of `example`."""
    if not isinstance(example, DTensor):
        return part
    return DTensor.from_local(
        part,
        example.device_mesh,
        example.placements,
        run_check=False,
        shape=example.shape,
        stride=example.stride(),
    )
