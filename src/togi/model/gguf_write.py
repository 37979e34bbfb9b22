"""Writes a model folder as one GGUF file for llama.cpp, one weight at a time."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from safetensors import safe_open
from torch import Tensor

from togi.core.errors import InputError
from togi.core.files import atomic_file
from togi.model.gguf_forms import Form, extra_tensors, form_of, write_shape, written
from togi.model.gguf_words import words_of, write_words
from togi.model.load import LoadedModel
from togi.model.network import read_config
from togi.text.render import check_template

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""The types of matrices; norms and biases are always float32."""
BLOCK = 32
"""Weights that share a scale in Q8_0."""
LARGEST = {GGMLQuantizationType.F16: 65_504.0, GGMLQuantizationType.Q8_0: 65_504.0 * 127}
"""The largest sizes of numbers: Q8_0 multiplies whole numbers up to 127 by a scale in float16."""


def write_gguf(folder: Path, model: LoadedModel, target: Path, kept: GgufType) -> list[str]:
    """Writes the network in `folder`, with the tokenizer and the template of `model`, to `target`; returns notes for
    the user. Only one weight at a time is in memory.

    Raises InputError for networks or tokenizers that llama.cpp would compute or split differently, OSError if the disk
    is full.
    """
    config = read_config(folder)
    form = form_of(config)
    stored = dict(_stored(folder))
    rows = next(shape[0] for name, (_, shape) in stored.items() if name.endswith("embed_tokens.weight"))
    words = words_of(model.tokenizer, rows, model.name)
    template = model.template.bind(model.tokenizer)
    terminator = check_template(template, model.tokenizer).terminator
    names = _names(form, config, stored)
    with atomic_file(target) as temporary, closing(GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[form.arch])) as writer:
        writer.add_type("model")
        writer.add_name(target.stem)
        write_shape(writer, config, form, rows)
        writer.add_file_type(TYPES[kept][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        end = terminator[0] if len(terminator) == 1 else None
        write_words(writer, words, model.tokenizer, end, template.to_jinja())
        _write_weights(writer, stored, names, (config, form), kept)
    return [*_lost_note(words.lost), *_end_note(terminator, template.terminator)]


def _lost_note(lost: Sequence[str]) -> list[str]:
    if not lost:
        return []
    first = ", ".join(map(repr, lost[:3])) + (", ..." if len(lost) > 3 else "")
    return [f"tokens without embeddings are left out of the file: {first}"]


def _end_note(terminator: Sequence[int], text: str) -> list[str]:
    if len(terminator) == 1:
        return []
    return [
        f"an answer ends with {text!r}, which is {len(terminator)} tokens; llama.cpp ends only at single tokens, so "
        f"give it {text!r} as a stop string (llama-cli: --reverse-prompt)"
    ]


def _stored(folder: Path) -> Iterator[tuple[str, tuple[Path, tuple[int, ...]]]]:
    """Yields the names of a folder's weights, with their files and shapes."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, (path, tuple(file.get_slice(name).get_shape()))


def _names(form: Form, config: Any, stored: dict[str, Any]) -> dict[str, str]:
    """llama.cpp's name for each weight. Raises InputError for a weight without one."""
    known = gguf.get_tensor_name_map(form.arch, config.num_hidden_layers)
    names = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in stored}
    strange = [name for name, found in names.items() if found is None]
    if strange:
        raise InputError(f"weight {strange[0]} has no place in a GGUF of {config.model_type}; use --format merged")
    return {name: found for name, found in names.items() if found is not None}


def _write_weights(
    writer: GGUFWriter, stored: dict[str, Any], names: dict[str, str], network: tuple[Any, Form], kept: GgufType
) -> None:
    config, form = network
    extra = dict(extra_tensors(config))
    for name, weight in extra.items():
        writer.add_tensor_info(name, weight.shape, np.dtype(np.float32), weight.numel() * 4)
    for name, (_, shape) in stored.items():
        kind = _kind(shape, kept)
        width = shape if kind == GGMLQuantizationType.F32 else gguf.quant_shape_to_byte_shape(shape, kind)
        held = np.dtype(np.float32 if kind == GGMLQuantizationType.F32 else np.uint8)
        raw = None if kind == GGMLQuantizationType.F32 else kind
        writer.add_tensor_info(names[name], width, held, int(np.prod(width)) * held.itemsize, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for weight in extra.values():
        writer.write_tensor_data(weight.numpy())
    for name, (path, shape) in stored.items():
        with safe_open(path, framework="pt") as file:
            weight = written(name, file.get_tensor(name), config, form)
        kind = _kind(shape, kept)
        _hold_range(name, weight, kind)
        writer.write_tensor_data(_bytes(weight, kind))


def _kind(shape: tuple[int, ...], kept: GgufType) -> GGMLQuantizationType:
    """The type for a weight of this shape; rows that do not divide into blocks stay in float16."""
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    if kept == "q8_0" and shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    return TYPES[kept][0]


def _hold_range(name: str, weight: Tensor, kind: GGMLQuantizationType) -> None:
    """Raises InputError for a weight with a number that `kind` would store as infinity."""
    largest = float(weight.abs().max()) if kind in LARGEST else 0.0
    if largest > LARGEST.get(kind, largest):
        raise InputError(
            f"weight {name} has a number of size {largest:.3g}, too large for {kind.name.lower()}; use --type bf16, or "
            "f32"
        )


def _bytes(weight: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    values = weight.numpy()
    return values if kind == GGMLQuantizationType.F32 else gguf.quants.quantize(values, kind).view(np.uint8)
