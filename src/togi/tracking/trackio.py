"""Metrics in trackio's local database: `trackio show --project RECIPE`."""

import importlib
from typing import Any

from togi.core.protocols import Tracker
from togi.tracking.base import TrackedRun

trackio: Any = importlib.import_module("trackio")


class Trackio:
    """A tracker."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        trackio.log(metrics, step=step)

    def close(self) -> None:
        trackio.finish()


def open_tracker(run: TrackedRun) -> Tracker:
    trackio.init(project=run.project, name=run.run, config=dict(run.settings), resume="allow")
    return Trackio()
