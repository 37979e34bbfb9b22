"""Publishes a folder on a model hub with the hub library's client, and compares the files."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, RepoFile, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
)

from togi.core.errors import InputError, RecipeError, StageError
from togi.core.outside import read_object
from togi.core.sources import ADAPTER_CONFIG, HUB_ID
from togi.core.terminal import json_text, say

log = logging.getLogger(__name__)

README = "README.md"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
HIDDEN = [".*", "**/.*", ".*/**"]
"""Patterns of files that are never published: the hub library's own notes, keys in dot files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The folder to publish, the target `repo` (owner/name) of the kind `what` (model, dataset), and its branch."""

    folder: Path
    repo: str
    what: str
    private: bool
    branch: str
    message: str


def push(wanted: Wanted, as_json: bool) -> None:
    """Publishes a folder in one commit and prints it.

    Raises RecipeError and InputError for a folder that cannot be published, before anything is sent; StageError if the
    hub refuses, does not answer, or does not list the sent files afterwards.
    """
    if not HUB_ID.fullmatch(wanted.repo):
        raise RecipeError(f"command line: {wanted.repo!r} is not the name of a repository; give owner/name")
    files = _files(wanted)
    for note in _notes(wanted.folder):
        log.warning("%s", note)
    total = sum(files.values())
    log.info("sending %d files, %.1f MB, to %s", len(files), total / 1e6, constants.ENDPOINT)
    commit = _sent(wanted)
    _hold(wanted, commit.oid, files)
    if as_json:
        told = {"repository": wanted.repo, "kind": wanted.what, "commit": commit.oid, "url": str(commit.commit_url)}
        say(json_text(told | {"files": files}, indent=1))
    else:
        say(f"published {len(files)} files as {wanted.what} {wanted.repo}, commit {commit.oid}")
        say(commit.commit_url)


def _files(wanted: Wanted) -> dict[str, int]:
    """The files to publish, with their sizes. Raises RecipeError for a folder without the required files, InputError
    for files that must not be published."""
    folder = wanted.folder
    if not folder.is_dir():
        raise RecipeError(f"command line: {folder}: there is no such folder; `togi export` writes one")
    found = sorted(_visible(folder))
    _refuse_links(folder, found)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    needed = ("*.parquet",) if wanted.what == "dataset" else ("*.safetensors", "*.gguf")
    if not any(Path(name).match(pattern) for name in files for pattern in needed):
        other = "leave --dataset out" if wanted.what == "dataset" else "a data set needs --dataset"
        raise RecipeError(
            f"command line: {folder} has no {' and no '.join(needed)}, so it is not a {wanted.what}; {other}"
        )
    pickles = [name for name in files if name.lower().endswith(PICKLES)]
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: a pickle runs code when it is loaded, so it is not published; remove it"
        )
    return files


def _refuse_links(folder: Path, found: Sequence[Path]) -> None:
    """Raises InputError for a file that lies elsewhere, since its publisher may not know what a link names."""
    inside = folder.resolve()
    for path in found:
        if inside not in path.resolve().parents:
            raise InputError(
                f"{path}: is a link to {path.resolve()}, outside the folder, so it is not published; put a copy in its "
                "place, or remove it"
            )


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _notes(folder: Path) -> Iterator[str]:
    """Warnings for the publisher."""
    if not (folder / README).is_file():
        yield f"{folder} has no {README}: readers of the hub will see no card"
    if (folder / ADAPTER_CONFIG).is_file():
        base = str(read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
        if not HUB_ID.fullmatch(base):
            yield f"{folder / ADAPTER_CONFIG} names its base by a folder ({base}): others cannot load it"


def _sent(wanted: Wanted) -> CommitInfo:
    api = HfApi()
    try:
        api.create_repo(wanted.repo, repo_type=wanted.what, private=wanted.private or None, exist_ok=True)
        if wanted.branch != "main":
            api.create_branch(wanted.repo, branch=wanted.branch, repo_type=wanted.what, exist_ok=True)
        sent = api.upload_folder(
            repo_id=wanted.repo,
            folder_path=wanted.folder,
            repo_type=wanted.what,
            revision=wanted.branch,
            commit_message=wanted.message,
            ignore_patterns=HIDDEN,
        )
    except (OSError, ValueError, RuntimeError, HTTPError, HfHubHTTPError, HFValidationError) as error:
        raise StageError(f"{wanted.repo}: {_refused(error)}") from error
    assert isinstance(sent, CommitInfo)
    return sent


def _refused(error: Exception) -> str:
    """The meaning of a hub's refusal, with advice."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    first = first.removesuffix(".")
    if status in (401, 403):
        given = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        return (
            f"the hub does not allow writing there with this token ({given}); "
            f"set HF_TOKEN to one that may write. {first}."
        )
    if status is None:
        return (
            f"the hub at {constants.ENDPOINT} was not reached, or the connection broke: {first}. Run the command again"
        )
    return f"the hub answers {status}: {first}"


def _hold(wanted: Wanted, commit: str, files: dict[str, int]) -> None:
    """Raises StageError if the commit does not list each file with its size."""
    try:
        listed: Any = HfApi().list_repo_tree(wanted.repo, recursive=True, revision=commit, repo_type=wanted.what)
        there = {each.path: each.size for each in listed if isinstance(each, RepoFile)}
    except (OSError, ValueError, HTTPError, HfHubHTTPError) as error:
        raise StageError(
            f"{wanted.repo}: sent as {commit}, but the commit cannot be listed: {_refused(error)}"
        ) from error
    wrong = [name for name, size in files.items() if there.get(name) != size]
    if wrong:
        raise StageError(
            f"{wanted.repo}: commit {commit} lists {wrong[0]} with {there.get(wrong[0])} bytes, but "
            f"{files[wrong[0]]} were sent; push again"
        )
