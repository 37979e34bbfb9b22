"""Weights inside Python packages: found without importing the package, and converted once to safetensors."""

import errno
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils

from togi.core.errors import InputError, StageError
from togi.core.files import write_json
from togi.core.locks import LOCK, take
from togi.core.sources import ModelSource, fingerprint
from togi.model.folders import atomic_folder, converted_folder
from togi.model.gguf_splits import drop_strangers, mend_splits, scaled_positions
from togi.model.network import foreign
from togi.model.package_files import files_of, pieces_of

log = logging.getLogger(__name__)

CONVERTED = "converted.json"


def stated_sha256(files: Sequence[Path], name: str) -> str | None:
    """The hash that a package states for a file, if it states one."""
    for path in files:
        if path.name == "SHA256SUMS":
            for line in path.read_text(encoding="utf-8").splitlines():
                value, _, listed = line.partition(" ")
                if Path(listed.strip(" *")).name == name:
                    return value
    return None


def _blocks(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(2**22):
                yield block


def join_pieces(pieces: Sequence[Path], target: Path) -> str:
    """Writes the pieces to `target` and returns the sha256 of the result."""
    total = hashlib.sha256()
    with target.open("wb") as out:
        for block in _blocks(pieces):
            total.update(block)
            out.write(block)
    return total.hexdigest()


@contextmanager
def _quietly() -> Iterator[None]:
    """Hides the library's progress bar, which no setting turns off; `package_folder` has logged the conversion."""
    bar = modeling_gguf_pytorch_utils.tqdm  # pyright: ignore[reportPrivateImportUsage]
    modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=True)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar  # type: ignore[misc]


@_quietly()
def convert_gguf(gguf: Path, folder: Path, rope: dict[str, Any] | None = None) -> None:
    """Writes the weights of a GGUF as fp32 safetensors, with its configuration and tokenizer, into `folder`.

    The library does not read scaled rotary positions, so `rope` gives the configuration's. Raises InputError if a file
    has scaled positions but `rope` is None, and for a file that the library cannot read.
    """
    if rope is None and scaled_positions(gguf):
        raise InputError(f"{gguf.name}: scaled rotary positions are not supported in GGUF; use safetensors")
    options = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    net = foreign(
        lambda: AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **options),
        f"{gguf.name}: the model library cannot read it",
    )
    if rope is not None:
        net.config.rope_parameters = rope
    net.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    mend_splits(tokenizer.backend_tokenizer, gguf)
    tokenizer.save_pretrained(folder)
    drop_strangers(folder, gguf)


@contextmanager
def _making(folder: Path) -> Iterator[None]:
    """Locks a folder in the making, which tells `togi clean` on other machines that it is no leftover of a kill."""
    held = take(folder)
    assert held is not None  # this process has just made the folder
    with held:
        yield
        (folder / LOCK).unlink()


@contextmanager
def _written(source: ModelSource, folder: Path) -> Iterator[None]:
    """Raises InputError if the system does not allow the block to write `folder`, StageError if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library, about what it read
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "choose another folder with TOGI_HOME=FOLDER"
        raise (StageError if full else InputError)(
            f"{folder}: the converted weights of {source.name} cannot be written: {error.strerror}; {advice}"
        ) from None


def package_folder(source: ModelSource, cache: Path) -> Path:
    """The folder with a package's safetensors: in the package, or in `cache`, converted once from its GGUF.

    Raises InputError if the package is missing or damaged, does not contain exactly one model, or `cache` cannot be
    written; StageError if the disk is full.
    """
    named = fingerprint(source)
    files = files_of(source.name)
    for path in files:
        if path.name == "config.json" and any(path.parent.glob("*.safetensors")):
            return path.parent
    folder = converted_folder(source, cache)
    if (folder / CONVERTED).exists():
        return folder
    pieces = pieces_of(source, files)
    log.info("%s: converting its weights to safetensors, once; this takes a minute or two", source.name)
    name = pieces[0].name.partition(".part")[0]
    with _written(source, folder), atomic_folder(folder) as temporary, _making(temporary):
        gguf = temporary / name
        found, expected = join_pieces(pieces, gguf), stated_sha256(files, name)
        if expected not in (None, found):
            raise InputError(f"package {source.name}: {name} has sha256 {found}, expected {expected}; install it again")
        convert_gguf(gguf, temporary)
        gguf.unlink()
        write_json(temporary / CONVERTED, {"source": named, "sha256": found})
    return folder
