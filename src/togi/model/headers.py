"""Reads the headers of a model folder's safetensors files: names, shapes and types of tensors, but no weights.

Torch-free. The format: 8 bytes with the length of a JSON header, the header, then the tensors.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from togi.core.errors import InputError
from togi.core.outside import read_object, refuse_pointer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 10**8  # bytes, the limit of the safetensors library
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class Stored(NamedTuple):
    """A tensor in a file: its type as the format names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file. Raises InputError if it is truncated, damaged, or not a safetensors file."""
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise _damaged(path, "it is empty" if not size else "it is not a safetensors file, or is truncated")
            header = json.loads(handle.read(length))
        end, found = 0, {}
        for name, entry in header.items():
            if name != "__metadata__":
                found[name], last = _stored(entry)
                end = max(end, last)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header is damaged ({error})") from error
    if size - 8 - length != end:
        raise _damaged(path, f"it has {size} bytes, but its header describes {8 + length + end}")
    return found


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}; download it again")


def _stored(entry: Any) -> tuple[Stored, int]:
    """One tensor of a header, and the end of its bytes. Raises ValueError, KeyError or TypeError for a bad entry."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"a tensor of shape {list(shape)} at {begin} to {end}")
    bits = BITS.get(entry["dtype"])
    if bits is not None and -(-math.prod(shape) * bits // 8) != end - begin:
        raise ValueError(f"a tensor of shape {list(shape)} in {end - begin} bytes")
    return Stored(entry["dtype"], shape), end


def read_weights(folder: Path) -> dict[str, Stored]:
    """The tensors of a model folder, from all its shards.

    Raises InputError, with advice, for files that are missing, truncated or damaged, and for pickled weights.
    """
    if (folder / WEIGHTS).exists():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise InputError(f"{folder}: {_instead(folder)}")
    index = read_object(folder / INDEX)
    shards = _shards(folder, index)
    missing = [name for name in shards if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(shards)} weight files are missing: {some(missing)}; download them"
        )
    found = {name: read_header(folder / name) for name in shards}
    for tensor, shard in index["weight_map"].items():
        if tensor not in found[shard]:
            raise InputError(
                f"{folder / INDEX}: it names {tensor} in {shard}, which does not contain it; download both files again"
            )
    return {name: stored for shard in found.values() for name, stored in shard.items()}


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder that `read_weights` has accepted."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    return [folder / name for name in _shards(folder, read_object(folder / INDEX))]


def _shards(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The files that an index names, in order."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{folder / INDEX}: it has no weight_map from tensors to files; download it again")
    shards = sorted(set(names.values()))
    for name in shards:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{folder / INDEX}: it names {name!r}, which is not a weight file in this folder")
    return shards


def _instead(folder: Path) -> str:
    """What a folder without weights contains instead, with advice."""
    pickles = sorted(p.name for end in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5") for p in folder.glob(end))
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    ggufs = sorted(p.name for p in folder.glob("*.gguf"))
    if any("-of-" in name for name in others):
        return f"the weights are in several files ({some(others)}), but their index {INDEX} is missing"
    if others:
        return f"its weights are expected in {WEIGHTS}; found {some(others)}"
    if pickles:
        return (
            f"it has only {pickles[0]}, a pickle, which can run any code when it is read; togi reads *.safetensors: "
            "convert it with save_pretrained first"
        )
    if ggufs:
        return f"it has only {some(ggufs)}; togi reads *.safetensors: use the folder that the GGUF was made from"
    return f"it has no weights; togi reads {WEIGHTS}: download them, or name the folder that contains them"


def some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
