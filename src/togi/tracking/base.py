"""The interface of trackers, which show metrics in addition to metrics.jsonl: TensorBoard, trackio, Weights & Biases.

Secrets come only from the environment, as each library reads them (WANDB_API_KEY, HF_TOKEN); WANDB_MODE=offline and
TRACKIO_DIR control where metrics go. Each step is logged once: `tracked.json` stores the last one, so that a stage that
continues after a kill does not log the steps again that it repeats with the same bits.
"""

import importlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from togi.core.errors import RecipeError
from togi.core.files import read_cache, write_json
from togi.core.protocols import Tracker

TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""By the tracker's name in a recipe: the package that it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """The run that a tracker is opened for. `run` stays the same after a resume and changes after --redo."""

    project: str
    run: str
    folder: Path
    settings: Mapping[str, Any]


class OpensTracker(Protocol):
    """A module `togi.tracking.NAME`."""

    def open_tracker(self, run: TrackedRun) -> Tracker: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raises RecipeError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise RecipeError(f"track: {name} needs the package {TRACKERS[name]}: pip install {TRACKERS[name]}")


class Tracking:
    """The open trackers of a stage. Only rank 0 opens them: other ranks pass no `names`."""

    def __init__(self, names: Sequence[str], *, stage: str, project: str, folder: Path) -> None:
        self._path = folder / "tracked.json"
        self._open: list[Tracker] = []
        self._last = 0
        self._known: dict[str, Any] = {}
        if not names:
            return
        check_trackers(names)
        known = read_cache(self._path, {"run": str, "step": int}) or {}
        stamp = known.get("run") or f"{stage}-{folder.name[-8:]}-{time.strftime('%y%m%d%H%M%S')}"
        self._last = known.get("step", 0)
        self._known = {"run": stamp, "step": self._last}
        settings = read_cache(folder / "settings.json") or {}
        run = TrackedRun(project=project, run=stamp, folder=folder / "tracking", settings=settings)
        for name in names:
            module: Any = importlib.import_module(f"togi.tracking.{name}")
            self._open.append(module.open_tracker(run))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs a step, once; values that are not numbers are left out."""
        if not self._open or step <= self._last:
            return
        numbers = {k: float(v) for k, v in metrics.items() if k != "step" and isinstance(v, int | float)}
        for tracker in self._open:
            tracker.log(step, numbers)
        self._last = self._known["step"] = step
        write_json(self._path, self._known)

    def close(self) -> None:
        """Flushes and closes all."""
        for tracker in self._open:
            tracker.close()
        self._open = []
