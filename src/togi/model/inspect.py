"""The preflight check of a model: inspects its folder before any weights are read.

Torch-free. `check`, `plan` and `load` all use it, so they refuse the same folders with the same messages.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.core.hub import snapshot
from togi.core.outside import read_object, refuse_pointer
from togi.core.sources import ADAPTER_CONFIG, WEIGHT_PATTERNS, ModelSource, adapter_base
from togi.model.headers import Stored, read_header, read_weights

ADAPTER_WEIGHTS = "adapter_model.safetensors"
SMALL = tuple(pattern for pattern in WEIGHT_PATTERNS if pattern not in ("*.safetensors", "*.gguf"))
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OBJECTS = ("config.json", "generation_config.json", "togi.json", "added_tokens.json", "vocab.json", *TOKENIZER)
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length")
NAMESAKES = ("aqlm", "auto-round", "bitsandbytes", "compressed-tensors", "hqq", "quark", "torchao", "vptq")
LIBRARIES = {
    **{name: name.replace("-", "_") for name in NAMESAKES},
    "awq": "gptqmodel",
    "eetq": "kernels",
    "fbgemm_fp8": "fbgemm_gpu",
    "gptq": "gptqmodel",
    "higgs": "flute",
    "quanto": "optimum",
    "spqr": "spqr_quant",
}
"""Quantisation methods, and the library that each needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A model on this machine: the `folder` of the whole model with its configuration, and the folders of the
    `adapters` on it, the innermost first.

    `weights` are the tensors of the folder, None if only its small files are here. `notes` are messages for the user.
    """

    folder: Path
    adapters: tuple[Path, ...]
    config: Mapping[str, Any]
    weights: Mapping[str, Stored] | None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> Mapping[str, Any]:
        """The configuration of the part that reads and writes text."""
        found = self.config.get("text_config")
        return found if isinstance(found, dict) else self.config

    @property
    def context(self) -> int | None:
        """The longest sequence, in tokens; None if the model does not specify it."""
        return context_of(self.text)

    @property
    def quantised(self) -> str | None:
        """The quantisation method of the weights, as the configuration names it; None if they are plain."""
        return quantised_by(self.config)

    @property
    def top(self) -> Path:
        """The folder that was asked for: that of the outermost adapter, or of the model."""
        return self.adapters[-1] if self.adapters else self.folder

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer, or None without one. An adapter without a tokenizer uses that of its base."""
        places = [*reversed(self.adapters), self.folder]
        return next((p for p in places if any((p / name).exists() for name in TOKENIZER)), None)


def inspect_model(
    source: ModelSource, *, weights: bool = True, folder: Path | None = None, bare: bool = False
) -> Facts:
    """The facts of a model; a hub's model is fetched first, without `weights` only its small files.

    `folder` is the model's folder if it is known, such as that of a package's converted weights; a `bare` folder may
    have no weights yet. Raises InputError, with advice, if a folder is not a model, or if its files are missing,
    truncated, damaged or of another kind.
    """
    place = located(source, weights) if folder is None else folder
    adapters: list[Path] = []
    notes: list[str] = []
    while (place / ADAPTER_CONFIG).exists():
        if place in adapters:
            raise InputError(f"{place}: the base of this adapter is the adapter itself")
        _check_adapter(place, weights or source.kind != "hub")
        adapters.append(place)
        base = adapter_base(place, source.beside)
        assert base is not None
        if base.kind == "hub":
            notes.append(f"{place}: there is no local folder for the adapter's base {base.name}, so the hub's is used")
        source, place = base, located(base, weights)
    config = _configuration(place)
    absent = (source.kind == "hub" and not weights) or (bare and not any(place.glob("*.safetensors")))
    found = None if absent else read_weights(place)
    return Facts(folder=place, adapters=tuple(reversed(adapters)), config=config, weights=found, notes=tuple(notes))


def located(source: ModelSource, weights: bool) -> Path:
    """The folder of a hub's model, which is fetched, or of a path. Raises InputError if it does not exist."""
    if source.kind == "hub":
        allow = (*SMALL, "*.safetensors") if weights else SMALL
        return snapshot(source.name, source.revision, allow=allow, ignore=("*/*.safetensors", "consolidated*"))[0]
    folder = Path(source.name)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder")
    return folder


def _configuration(folder: Path) -> dict[str, Any]:
    """The configuration of a whole model's folder; checks that all its small files can be read."""
    if not (folder / "config.json").exists():
        if any(folder.glob("*.gguf")):
            raise InputError(
                f"{folder}: it has a GGUF file, which is for llama.cpp and similar programs; togi reads safetensors: "
                "use the model it was made from, or its export with --format merged"
            )
        within = folder / "output" / "model"
        hint = f"; it is the folder of a stage, whose model is in {within}" if (within / "config.json").exists() else ""
        raise InputError(f"{folder}: it has no config.json, so it is not a model folder of transformers{hint}")
    _check_files(folder)
    path = folder / "config.json"
    config = read_object(path)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{path}: it names no model_type, so it is not the configuration of a model of transformers")
    _check_library(path, config)
    return config


def _check_files(folder: Path) -> None:
    """Raises InputError for git-lfs pointers, and for JSON files that do not contain an object."""
    for pattern in SMALL:
        for path in sorted(folder.glob(pattern)):
            refuse_pointer(path)
    for name in OBJECTS:
        if (folder / name).exists():
            read_object(folder / name)


def _check_adapter(folder: Path, weights: bool) -> None:
    _check_files(folder)
    read_object(folder / ADAPTER_CONFIG)
    if (folder / ADAPTER_WEIGHTS).exists():
        read_header(folder / ADAPTER_WEIGHTS)
    elif weights:
        raise InputError(f"{folder}: it has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}; save the adapter again")


def quantised_by(config: Mapping[str, Any]) -> str | None:
    """The quantisation method of a configuration's weights; None if they are plain."""
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        return None
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return str(found.get("quant_method") or "an unnamed method")


def _check_library(path: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError for quantised weights whose library is not installed."""
    method = quantised_by(config)
    library = LIBRARIES.get(method or "")
    if library is not None and importlib.util.find_spec(library) is None:
        raise InputError(
            f"{path}: the weights are quantised by {method}, but its library {library!r} is not installed: install it, "
            "or use the model's plain weights (LoRA can quantise them itself: lora: {base: nf4})"
        )


def context_of(text: Mapping[str, Any]) -> int | None:
    """The longest sequence that a configuration allows, in tokens; None if it does not specify one.

    For rotary schemes that change with the longest position of a batch (longrope), the limit is below that change.
    """
    limits = [text.get(name) for name in CONTEXT]
    schemes = [found for name in ("rope_parameters", "rope_scaling") if isinstance(found := text.get(name), dict)]
    for scheme in [each for found in schemes for each in (found, *found.values()) if isinstance(each, dict)]:
        if (scheme.get("rope_type") or scheme.get("type")) in ("longrope", "su"):
            limits += [places.get("original_max_position_embeddings") for places in (scheme, text)]
    known = [limit for limit in limits if type(limit) is int and limit > 0]
    return min(known) if known else None
