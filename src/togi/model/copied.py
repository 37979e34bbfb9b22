"""Reads weights that are converted when they are read: to another type, or by stacking the experts of a layer.

Such weights are copies, so their files need not be mapped: while a model is loaded, the pages of a mapped file count as
memory besides the copies. Here only the tensor that is being converted is in memory twice.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig

from togi.model.headers import weight_files
from togi.model.inspect import Facts

STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""The library's switch: threads would read all experts before the first are stacked."""


def is_converted(facts: Facts, config: Any, dtype: torch.dtype) -> bool:
    """Whether loading a model of plain weights as `dtype` copies them."""
    if facts.weights is None or facts.quantised is not None:
        return False
    types = {STORED[weight.dtype] for weight in facts.weights.values() if weight.dtype in STORED}
    return types != {dtype} or has_experts(config)


def has_experts(config: Any) -> bool:
    """Whether a configuration is of a mixture of experts."""
    return bool(config.get_text_config().to_dict().get("num_experts_per_tok"))


def from_files(cls: Any, folder: Path, options: dict[str, Any]) -> Any:
    """What `cls.from_pretrained(folder, **options)` returns with `output_loading_info`."""
    with one_by_one(has_experts(options["config"])):
        net, report = cls.from_pretrained(None, state_dict=unread(folder), **options)
    give_origin(net, folder)
    return net, report


def unread(folder: Path) -> dict[str, Any]:
    """The stored weights of a folder, by name, as slices that are read when they are indexed."""
    handles = [safe_open(file, framework="pt", backend="pread") for file in weight_files(folder)]
    return {name: handle.get_slice(name) for handle in handles for name in handle.keys()}  # noqa: SIM118 (no mapping)


def give_origin(net: Any, folder: Path) -> None:
    """Gives a network what the library reads from its folder besides configuration and weights."""
    net.name_or_path = net.config.name_or_path = str(folder)
    if net.can_generate():
        net.generation_config = _generation(folder)


def _generation(folder: Path) -> GenerationConfig:
    """The generation settings of a folder, as the library reads them."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:  # without a file of their own they may be in the configuration
        return GenerationConfig.from_pretrained(folder, "config.json", local_files_only=True, _from_model_config=True)


@contextmanager
def one_by_one(wanted: bool) -> Iterator[None]:
    """A context in which the library reads a weight only when it converts it, if `wanted`."""
    before = os.environ.get(ONE_BY_ONE)
    if wanted:
        os.environ[ONE_BY_ONE] = "1"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ[ONE_BY_ONE]
        elif wanted and before is not None:
            os.environ[ONE_BY_ONE] = before
