"""Known runs: each has an id, by which it can still be found after a run with other overrides has replaced it.

The folder of a recipe's last run is `runs/NAME`. When a run with another id begins there, the files that describe the
previous one are copied to `history/ID`: its state, its recipe, its report and the list of store folders that it uses,
so that `togi clean` keeps its results until the run is forgotten.
"""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from togi.core.errors import DamagedFile, RecipeError
from togi.core.files import read_object, write_text
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


def known_runs() -> list[KnownRun]:
    """All known runs, newest first, without those whose state is damaged."""
    found: dict[str, KnownRun] = {}
    for place, last in (("runs", True), (HISTORY, False)):
        for folder in sorted((home() / place).glob("*/")):
            with suppress(DamagedFile):
                if (folder / STATE).exists():
                    state = read_state(folder)
                    name = id_of(state)
                    found.setdefault(name, KnownRun(id=name, folder=folder, state=state, last=last))
    return sorted(found.values(), key=lambda run: -(run.state.get("started") or 0.0))


def find_run(given: str) -> KnownRun:
    """The run whose id is, or begins with, `given`. Raises RecipeError if there is none, or more than one."""
    runs = known_runs()
    found = [run for run in runs if run.id.startswith(given)] if len(given) >= SHORTEST else []
    if len(found) == 1:
        return found[0]
    what = "is the beginning of several ids" if found else "is not a known run"
    names = ", ".join(f"{run.id} ({run.state['name']})" for run in found or runs) or "none; `togi run` makes one"
    raise RecipeError(f"--run: {given!r} {what}; known runs: {names}")


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


def forget(given: str) -> list[str]:
    """Forgets an earlier run, or all of them with "all"; returns their ids. `togi clean` then removes their results
    unless another run uses them. Raises RecipeError for a recipe's last run, or an unknown one."""
    runs = [run for run in known_runs() if not run.last] if given == "all" else [find_run(given)]
    for run in runs:
        if run.last:
            raise RecipeError(
                f"--forget: {run.id} is the last run of {run.state['name']}; remove {run.folder} yourself"
            )
        shutil.rmtree(run.folder)
    return [run.id for run in runs]
