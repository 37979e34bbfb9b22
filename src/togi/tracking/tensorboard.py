"""Metrics as TensorBoard event files: `tensorboard --logdir $TOGI_HOME/runs/RECIPE`."""

from torch.utils.tensorboard import SummaryWriter

from togi.core.protocols import Tracker
from togi.tracking.base import TrackedRun


class TensorBoard:
    """A tracker; each step is on disk before the next one begins."""

    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def open_tracker(run: TrackedRun) -> Tracker:
    return TensorBoard(SummaryWriter(str(run.folder / "tensorboard" / run.run)))
