"""Data sets from the model hub: the files of one revision, downloaded once into the hub library's own cache."""

import importlib
from pathlib import Path
from typing import Any

from togi.core.errors import InputError, RecipeError
from togi.data.rows import SUFFIXES


def download(name: str, revision: str) -> tuple[Path, str]:
    """(folder, commit) of the data set "owner/name", or of a folder inside it ("owner/name/folder").

    Raises RecipeError on a name of another form or without the hub library, InputError where the hub does not answer.
    """
    owner, _, rest = name.partition("/")
    repository, _, inside = rest.partition("/")
    if not owner or not repository:
        raise RecipeError(f"data: hub: {name!r} is no data set's name; wanted owner/name, or owner/name/folder")
    hub = _library()
    prefix = f"{inside.strip('/')}/" if inside else ""
    patterns = [pattern for ending in SUFFIXES for pattern in (f"{prefix}*{ending}", f"{prefix}**/*{ending}")]
    try:
        snapshot = hub.snapshot_download(
            f"{owner}/{repository}", repo_type="dataset", revision=revision, allow_patterns=patterns
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise InputError(
            f"data set {name!r} at revision {revision!r} cannot be fetched: {error}. Check the name and the network, "
            "or fetch it elsewhere and name its folder with `path`"
        ) from error
    folder = Path(snapshot)
    return folder / prefix, folder.name  # the hub library names the folder of a snapshot after its commit


def _library() -> Any:
    """The hub library: loaded here, since recipes with local data need neither it nor the time it takes."""
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise RecipeError("data from a hub needs the package huggingface_hub: install togi[train]") from None
