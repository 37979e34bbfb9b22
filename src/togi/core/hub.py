"""The model hub: downloads one revision of a repository into the hub library's cache.

If the hub does not answer within seconds, togi logs a warning and uses the cached files. The library's own retries
would take minutes.
"""

import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from togi.core.errors import InputError, RecipeError, StageError
from togi.core.strangers import run_stranger

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")

SECONDS = 3.0
"""Time limit for the hub to resolve a revision to a commit."""

_silent: dict[str, str] = {}  # hubs that did not answer; this process does not ask them again
_offline: list[str] = []  # why hubs are not asked at all


class NotLookedUp(InputError):
    """A model or data set that is not in the cache, while hubs are not asked (`offline`)."""


@contextmanager
def offline(why: str) -> Iterator[None]:
    """Asks no hub inside the block: anything missing from the cache raises NotLookedUp, whose message gives `why`."""
    _offline.append(why)
    try:
        yield
    finally:
        _offline.pop()


def snapshot(
    name: str, revision: str, *, what: str = "model", allow: Sequence[str], ignore: Sequence[str] = ()
) -> tuple[Path, str]:
    """Downloads the repository `name` ("owner/name") of kind `what` (model, dataset) once; returns (folder, commit).

    Fetches only files that match a pattern of `allow` and none of `ignore`. Raises RecipeError without the hub library.
    Raises InputError if the repository or revision does not exist, or if the hub does not answer and the cache lacks
    these files.
    """
    hub = _library()
    if _offline:
        return _cached(hub, name, revision, what, allow, ignore)
    options = {"repo_type": what, "allow_patterns": list(allow), "ignore_patterns": list(ignore) or None}
    try:
        if _is_cached(hub, name, revision, what):
            return Path(hub.snapshot_download(name, revision=revision, local_files_only=True, **options)), revision
    except hub.errors.LocalEntryNotFoundError:
        pass  # files are missing: the hub has to be asked
    why = _why_not(hub, name, revision, what)
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=bool(why), **options))
        if why:
            log.warning("%s: %s; using the copy in the cache (%s)", name, why, folder.name)
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        found = why or f"it cannot be fetched: {_first_line(error)}"
        cached = ", and the cache of the hub library lacks some of its files" if why else ""
        raise InputError(
            f"{what} {name!r} at revision {revision!r}: {found}{cached}. Check the name and the network, or fetch it "
            "elsewhere and set `path` to its folder"
        ) from error
    return folder, folder.name  # the library names the folder of a snapshot after its commit


def _cached(
    hub: Any, name: str, revision: str, what: str, allow: Sequence[str], ignore: Sequence[str]
) -> tuple[Path, str]:
    """`snapshot` from the cache only. Raises NotLookedUp if files are missing there."""
    patterns = {"allow_patterns": list(allow), "ignore_patterns": list(ignore) or None}
    try:
        found = hub.snapshot_download(name, revision=revision, repo_type=what, local_files_only=True, **patterns)
    except (OSError, ValueError, hub.errors.HTTPError):
        raise NotLookedUp(
            f"{what} {name} at revision {revision} was not looked up on the hub ({_offline[-1]}), and the cache does "
            "not contain it: togi has not verified that it exists, may be read and fits the recipe"
        ) from None
    return Path(found), Path(found).name


def in_cache(name: str, commit: str, what: str = "model") -> bool:
    """Whether a commit of `name` is in the hub library's cache. Raises RecipeError without the library."""
    return _is_cached(_library(), name, commit, what)


def _library() -> Any:
    """The hub library, imported late because recipes with local files do not need it."""
    try:
        hub = importlib.import_module("huggingface_hub")
        for part in ("constants", "errors", "utils"):  # the library loads its submodules lazily
            importlib.import_module(f"huggingface_hub.{part}")
    except ModuleNotFoundError:
        raise RecipeError("models and data from a hub need the package huggingface_hub: install togi[train]") from None
    hub.utils.logging.set_verbosity_error()  # otherwise each retry prints a line in the terminal
    return hub


def _why_not(hub: Any, name: str, revision: str, what: str) -> str:
    """Why the hub cannot resolve a revision to a commit; empty if it can."""
    end = hub.constants.ENDPOINT
    if end in _silent:
        return _silent[end]
    found = within(SECONDS, lambda: hub.HfApi().repo_info(name, repo_type=what, revision=revision, timeout=SECONDS))
    if isinstance(found, hub.errors.HFValidationError):
        return f"this is not the name of a {what} on a hub; use owner/name"
    if isinstance(found, hub.errors.HfHubHTTPError) and not isinstance(found, hub.errors.OfflineModeIsEnabled):
        return f"{end} answers: {_first_line(found)}"
    if isinstance(found, BaseException):
        _silent[end] = f"the hub does not answer ({end}: {_first_line(found)})"
        return _silent[end]
    return ""


def _is_cached(hub: Any, name: str, revision: str, what: str) -> bool:
    """Whether the revision is a commit whose list of files is in the cache, so that missing files are known."""
    if not COMMIT.fullmatch(revision):
        return False
    repository = f"{what}s--{name.replace('/', '--')}"
    return os.path.exists(os.path.join(hub.constants.HF_HUB_CACHE, repository, "trees", f"{revision}.json"))


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns the result of `call`, or its exception as a value; a TimeoutError if it takes longer than `seconds`. The
    library's own timeouts do not cover silent name servers or answers that arrive slowly."""
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
