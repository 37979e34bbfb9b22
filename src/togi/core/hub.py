"""The model hub: the files of one revision of a repository, in the hub library's own cache.

A hub that does not answer is told within seconds, and what the cache holds is used in its place. The library's own
retries would go on for minutes.
"""

import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from togi.core.errors import InputError, RecipeError, StageError
from togi.core.strangers import run_stranger

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")

SECONDS = 3.0
"""How long the hub may take to say which commit a revision is."""

_silent: dict[str, str] = {}  # hubs that did not answer in this process: they are not asked again


def snapshot(
    name: str, revision: str, *, what: str = "model", allow: Sequence[str], ignore: Sequence[str] = ()
) -> tuple[Path, str]:
    """(folder, commit) of the repository `name` ("owner/name") of kind `what` (model, dataset), downloaded once.

    Only files that match a pattern of `allow` and none of `ignore` are fetched. Raises RecipeError without the hub
    library, InputError for a repository or revision that is not there, and where the hub does not answer and the cache
    does not hold these files.
    """
    hub = _library()
    options = {"repo_type": what, "allow_patterns": list(allow), "ignore_patterns": list(ignore) or None}
    try:
        if _is_cached(hub, name, revision, what):
            return Path(hub.snapshot_download(name, revision=revision, local_files_only=True, **options)), revision
    except hub.errors.LocalEntryNotFoundError:
        pass  # not all of these files: the hub has to be asked
    why = _why_not(hub, name, revision, what)
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=bool(why), **options))
        if why:
            log.warning("%s: %s; the copy in the cache is used (%s)", name, why, folder.name)
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        found = why or f"it cannot be fetched: {_first_line(error)}"
        cached = ", and the cache of the hub library does not hold all of it" if why else ""
        raise InputError(
            f"{what} {name!r} at revision {revision!r}: {found}{cached}. Check the name and the network, or fetch it "
            "elsewhere and name its folder with `path`"
        ) from error
    return folder, folder.name  # the library names the folder of a snapshot after its commit


def _library() -> Any:
    """The hub library: loaded here, since recipes with local files need neither it nor the time it takes."""
    try:
        hub = importlib.import_module("huggingface_hub")
        for part in ("constants", "errors", "utils"):  # it loads its parts late
            importlib.import_module(f"huggingface_hub.{part}")
    except ModuleNotFoundError:
        raise RecipeError("what comes from a hub needs the package huggingface_hub: install togi[train]") from None
    hub.utils.logging.set_verbosity_error()  # each of its retries would be a line in the terminal
    return hub


def _why_not(hub: Any, name: str, revision: str, what: str) -> str:
    """Why the hub does not tell which commit a revision is; empty if it does."""
    end = hub.constants.ENDPOINT
    if end in _silent:
        return _silent[end]
    found = within(SECONDS, lambda: hub.HfApi().repo_info(name, repo_type=what, revision=revision, timeout=SECONDS))
    if isinstance(found, hub.errors.HFValidationError):
        return f"this is no name of a {what} on a hub; wanted owner/name"
    if isinstance(found, hub.errors.HfHubHTTPError) and not isinstance(found, hub.errors.OfflineModeIsEnabled):
        return f"{end} answers: {_first_line(found)}"
    if isinstance(found, BaseException):
        _silent[end] = f"the hub does not answer ({end}: {_first_line(found)})"
        return _silent[end]
    return ""


def _is_cached(hub: Any, name: str, revision: str, what: str) -> bool:
    """Whether a revision is a commit whose list of files is in the cache: what is not there is then known."""
    if not COMMIT.fullmatch(revision):
        return False
    repository = f"{what}s--{name.replace('/', '--')}"
    return os.path.exists(os.path.join(hub.constants.HF_HUB_CACHE, repository, "trees", f"{revision}.json"))


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, as a value; a TimeoutError if that takes longer: a name server that is silent, or
    an answer that drips, heeds no deadline of the library's."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(run_stranger(call, StageError))
        except StageError as error:
            found.append(error.__cause__)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(seconds + 0.2)
    return found[0] if found else TimeoutError(f"no answer within {seconds:g} s")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("(Request ID")), type(error).__name__)
