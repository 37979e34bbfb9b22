"""Data sets from the model hub: downloads the files of one revision once, into the hub library's own cache."""

from pathlib import Path

from togi.core.errors import RecipeError
from togi.core.hub import snapshot
from togi.data.rows import SUFFIXES


def download(name: str, revision: str) -> tuple[Path, str]:
    """(folder, commit) of the data set "owner/name", or of a folder inside it ("owner/name/folder").

    Raises RecipeError for a name of another form, or without the hub library. Raises InputError if the data set does
    not exist, or if the hub does not answer and the cache does not contain it.
    """
    owner, _, rest = name.partition("/")
    repository, _, inside = rest.partition("/")
    if not owner or not repository:
        raise RecipeError(f"data: hub: {name!r} is not the name of a data set; use owner/name or owner/name/folder")
    prefix = f"{inside.strip('/')}/" if inside else ""
    patterns = [pattern for ending in SUFFIXES for pattern in (f"{prefix}*{ending}", f"{prefix}**/*{ending}")]
    folder, commit = snapshot(f"{owner}/{repository}", revision, what="dataset", allow=patterns)
    return folder / prefix, commit
