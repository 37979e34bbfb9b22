"""Metrics in Weights & Biases. The key comes from WANDB_API_KEY; WANDB_MODE=offline writes only files."""

import importlib
from typing import Any

from togi.core.errors import StageError
from togi.core.protocols import Tracker
from togi.tracking.base import TrackedRun

wandb: Any = importlib.import_module("wandb")


class WeightsAndBiases:
    """A tracker over one run."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


def open_tracker(run: TrackedRun) -> Tracker:
    """Raises StageError if there is no key and WANDB_MODE is not offline."""
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        found = wandb.init(
            project=run.project, id=run.run, name=run.run, dir=run.folder, config=dict(run.settings), resume="allow"
        )
    except wandb.errors.Error as error:
        raise StageError(
            f"track: wandb: {error}. Set WANDB_API_KEY, or WANDB_MODE=offline to write only files"
        ) from error
    return WeightsAndBiases(found)
