"""Known runs: each has an id, by which it can still be found after a run with other overrides has replaced it.

The folder of a recipe's last run is `runs/NAME`. When a run with another id begins there, the files that describe the
previous one are copied to `history/ID`: its state, its recipe, its report and the list of store folders that it uses.
With that list, `togi clean` keeps the results of the previous run until that run is forgotten.
"""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from togi.core.errors import DamagedFile, InputError, RecipeError
from togi.core.files import crash_point, read_object, write_text
from togi.core.seeds import digest
from togi.recipe.state import STATE, read_state
from togi.recipe.store import home
from togi.stages.base import StageSettings
from togi.stages.table import STAGES

HISTORY = "history"
KEPT = ("uses.json", "recipe.lock.yaml", "report.html", STATE)  # the state comes last: it makes the run known
DIGITS = 12
SHORTEST = 4  # digits of an id that must be typed at least


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run on disk. `last`: it is its recipe's last one, and a run may be at work in its folder."""

    id: str
    folder: Path
    state: Mapping[str, Any]
    last: bool


def run_id(name: str, fingerprints: Iterable[tuple[str, str]]) -> str:
    """The id of a run: digits of a hash of its recipe's name and of the names and fingerprints of its stages. The same
    command on the same files gives the same id."""
    return digest([name, *map(list, fingerprints)])[:DIGITS]


def id_of(state: Mapping[str, Any]) -> str:
    """The id of the run that a state describes."""
    return run_id(state["name"], [(stage["name"], stage.get("fingerprint", "")) for stage in state["stages"]])


def keep_last(folder: Path, beginning: str) -> None:
    """Keeps the files that describe the last run in `folder`, unless its id is `beginning`, the run that begins."""
    with suppress(DamagedFile):
        before = id_of(read_state(folder)) if (folder / STATE).exists() else beginning
        if before != beginning:
            for name in KEPT:
                if (folder / name).exists():
                    write_text(home() / HISTORY / before / name, (folder / name).read_text(encoding="utf-8"))


def folders_of_runs(place: str) -> list[Path]:
    """The folders of runs in `place`, a folder of the home: "runs" has each recipe's last run, HISTORY earlier ones.

    Raises InputError if they cannot be listed, or one of them is a link to a place that is missing.
    """
    where = home() / place
    try:
        found = [path for path in sorted(where.iterdir()) if path.is_dir() or path.is_symlink()]
        gone = [path for path in found if not path.exists()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{where}: the folders of runs cannot be read ({error.strerror}); check who owns them"
        ) from None
    if gone:
        raise InputError(
            f"{gone[0]}: it is a link to {gone[0].readlink()}, which is missing; restore it, or remove the link"
        )
    return found


def known_runs() -> list[KnownRun]:
    """All known runs, newest first, without those whose state is damaged. Raises InputError as `folders_of_runs`."""
    found: dict[str, KnownRun] = {}
    for place, last in (("runs", True), (HISTORY, False)):
        for folder in folders_of_runs(place):
            with suppress(DamagedFile):
                if (folder / STATE).exists():
                    state = read_state(folder)
                    name = id_of(state)
                    found.setdefault(name, KnownRun(id=name, folder=folder, state=state, last=last))
    return sorted(found.values(), key=lambda run: -(run.state.get("started") or 0.0))


def find_run(given: str, option: str = "--run") -> KnownRun:
    """The run whose id is, or begins with, `given`, the value of `option`. Raises RecipeError if there is none, or more
    than one."""
    runs = known_runs()
    found = [run for run in runs if run.id.startswith(given)] if len(given) >= SHORTEST else []
    if len(found) == 1:
        return found[0]
    what = "is the beginning of several ids" if found else "is not a known run"
    names = ", ".join(f"{run.id} ({run.state['name']})" for run in found or runs) or "none; `togi run` makes one"
    raise RecipeError(f"{option}: {given!r} {what}; known runs: {names}")


def stage_of(run: KnownRun, name: str) -> Mapping[str, Any]:
    """The stage `name` of a run, with its folder. Raises RecipeError if there is none."""
    for stage in run.state["stages"]:
        if stage["name"] == name:
            return stage
    names = ", ".join(stage["name"] for stage in run.state["stages"])
    raise RecipeError(f"run {run.id}: there is no stage {name!r}; there are: {names}")


def settings_of(stage: Mapping[str, Any]) -> StageSettings:
    """The settings of a stage that has begun. Raises DamagedFile if they are missing or damaged."""
    path = Path(stage["folder"]) / "settings.json"
    try:
        return STAGES[stage["type"]].settings.model_validate(read_object(path))
    except (KeyError, ValidationError):
        raise DamagedFile(f"{path}: not the settings of a stage {stage['type']} of this version of togi") from None


def forgettable(given: str) -> list[KnownRun]:
    """The earlier run with this id, or all of them with "all". Raises RecipeError for a recipe's last run, or an
    unknown one."""
    runs = [run for run in known_runs() if not run.last] if given == "all" else [find_run(given, "--forget")]
    for run in runs:
        if run.last:
            raise RecipeError(
                f"--forget: {run.id} is the last run of {run.state['name']}; remove {run.folder} yourself"
            )
    return runs


def forget(runs: Iterable[KnownRun]) -> None:
    """Forgets earlier runs; `togi clean` then removes their results unless another run uses them. Raises InputError if
    the system does not allow it."""
    for run in runs:
        try:
            _remove(run.folder)
        except OSError as error:
            raise InputError(
                f"--forget: {run.folder}: cannot be removed ({error.strerror}); check who owns it"
            ) from None


def _remove(folder: Path) -> None:
    """Removes the folder of an earlier run, or a link to it. The state goes last, so that a kill leaves a run that can
    still be forgotten."""
    for name in KEPT:
        crash_point("forgetting", folder)
        (folder / name).unlink(missing_ok=True)
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)
