"""Writes a network's weights exactly as the library would, byte for byte, but one layer at a time.

The names, order and division into files come from the library, given weights without memory; then each weight is
computed, written to its position and released.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from togi.model.headers import INDEX
from togi.model.streamed import SavedNetwork

PATTERN = "model{suffix}.safetensors"
LARGEST = "50GB"  # the library's limit on a file
LAYER = re.compile(r"(.*?\.\d+)\.")
FORMAT = {"format": "pt"}

Place = tuple[str, int]  # a file, and the byte at which a weight begins


def write_weights(network: SavedNetwork, folder: Path, *, largest: str = LARGEST) -> None:
    """Writes the weights of `network` into `folder`, in files of at most `largest`. One weight at a time is in memory,
    or one layer if the library stores a layer's weights in another form than it computes with. Raises OSError if the
    disk is full."""
    shapes = _kept(network)
    made = _as_stored(network.plain, list(shapes), shapes)
    split = _split(made, largest)
    places: dict[str, Place] = {}
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for file, names in split.filename_to_tensors.items():
            files[file] = stack.enter_context((folder / file).open("wb"))
            starts = _write_header(files[file], {name: made[name] for name in names})
            places |= {name: (file, start) for name, start in starts.items()}
        for group in _groups(network.plain, shapes, made):
            tensors = {name: network.saved(name) for name in group}
            for name, weight in _as_stored(network.plain, group, tensors).items():
                file, start = places[name]
                files[file].seek(start)
                files[file].write(_bytes(weight))
    if split.is_sharded:
        _write_index(folder, network.plain, split)


def stored_shapes(network: SavedNetwork) -> Iterator[tuple[str, Tensor]]:
    """The names and shapes of the weights of `network` as they are stored, without memory, in the order of
    `stored_weights`."""
    shapes = _kept(network)
    for group in _groups(network.plain, shapes, _as_stored(network.plain, list(shapes), shapes)):
        yield from _as_stored(network.plain, group, shapes).items()


def stored_weights(network: SavedNetwork) -> Iterator[tuple[str, Tensor]]:
    """The weights of `network` under their stored names and in their stored form, computed one by one, or layer by
    layer if the library stores a layer in another form than it computes with."""
    shapes = _kept(network)
    for group in _groups(network.plain, shapes, _as_stored(network.plain, list(shapes), shapes)):
        yield from _as_stored(network.plain, group, {name: network.saved(name) for name in group}).items()


def _kept(network: SavedNetwork) -> dict[str, Tensor]:
    """The weights to save, without memory; only one of each set of tied weights."""
    ignored = network.plain._keys_to_ignore_on_save or ()
    shapes = {name: shape for name, shape in network.shapes().items() if name not in ignored}
    return remove_tied_weights_from_state_dict(shapes, network.plain)


def _split(made: dict[str, Tensor], largest: str) -> Any:
    """The division of weights into files. The library keeps weights together that share memory."""
    return split_state_dict_into_shards_factory(
        made,
        get_storage_size=lambda weight: weight.untyped_storage().nbytes(),
        get_storage_id=lambda weight: weight.untyped_storage()._cdata,
        filename_pattern=PATTERN,
        max_shard_size=largest,
    )


def _groups(plain: Any, shapes: dict[str, Tensor], made: dict[str, Tensor]) -> Iterator[Sequence[str]]:
    """Splits the names of `shapes` into groups that can be converted separately to their stored form, as in `made`."""
    if all(name in made and made[name].shape == shape.shape for name, shape in shapes.items()):
        yield from ([name] for name in shapes)
        return
    layers: dict[str, list[str]] = {}
    for name in shapes:
        found = LAYER.match(name)
        layers.setdefault(found[1] if found else name, []).append(name)
    alone = [name for group in layers.values() for name in _as_stored(plain, group, shapes)]
    yield from layers.values() if sorted(alone) == sorted(made) else [list(shapes)]


def _as_stored(plain: Any, names: Sequence[str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under their stored names and in their stored form."""
    return revert_weight_conversion(plain, {name: tensors[name] for name in names})


def _write_header(file: BinaryIO, shapes: dict[str, Tensor]) -> dict[str, int]:
    """Writes the header that the library would, and returns the byte at which each weight begins. The order comes from
    the library, which saves empty weights of the same names and types."""
    empty = save({name: torch.empty(0, dtype=shape.dtype) for name, shape in shapes.items()}, metadata=FORMAT)
    header: dict[str, Any] = json.loads(empty[8 : 8 + int.from_bytes(empty[:8], "little")])
    end, starts = 0, {}
    for name, entry in header.items():
        if name != "__metadata__":
            starts[name], size = end, shapes[name].numel() * shapes[name].element_size()
            entry |= {"shape": list(shapes[name].shape), "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _bytes(weight: Tensor) -> Any:
    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_index(folder: Path, plain: Any, split: Any) -> None:
    metadata = {"total_parameters": plain.num_parameters(), **split.metadata}
    index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
