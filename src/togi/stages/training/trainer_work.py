"""What training stages share: updates, one line of metrics per step, checkpoints, and resuming after a kill."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch.nn import Parameter

from togi.core.errors import Interrupted
from togi.core.files import append_line, cut_torn_line, read_lines
from togi.objectives.base import Objective, Output
from togi.stages.arithmetic import device
from togi.stages.context import Context
from togi.tracking.base import Tracking
from togi.train import usage
from togi.train.checkpoint import capture, newest_complete, restore, save, take_weights
from togi.train.loop import MicroBatch, StepInfo, train_steps
from togi.train.optimizer import Update

Inputs = TypeVar("Inputs")
HIGHER = ("accuracy", "reward")  # validation metrics for which higher is better
APPENDED = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "journal.jsonl")


class Progress(Protocol):
    """State that a checkpoint must keep because it does not follow from the step."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(slots=True)
class Trainer:
    """A running training. `step` counts finished steps; the checkpoint of step `pinned` is never pruned.

    Each run of `together` steps shares state that a checkpoint does not keep, so it saves and stops only between such
    runs.
    """

    context: Context
    params: Mapping[str, Parameter]
    update: Update
    total_steps: int
    save_every: int
    keep: int
    progress: Progress
    step: int = 0
    pinned: int | None = None
    together: int = 1
    _began: float = field(default_factory=time.perf_counter)
    _saved: int = -1
    _tracking: Tracking | None = None

    def resume(self) -> None:
        """Restores the newest complete checkpoint. Without one, training starts over and earlier log lines are
        removed."""
        newest = self.context.ranks.on_first_rank(self._newest)
        if newest is None:
            return
        context = self.context
        state = restore(newest, self.params, self.update.optimizer, context.ranks, context.fingerprint)
        self.progress.restore(state.progress)
        self.step = self._saved = state.step
        self.context.log(f"resuming after step {state.step} of {self.total_steps}")

    def _newest(self) -> Path | None:
        """The checkpoint to resume from. Without one, removes the log lines of an earlier attempt."""
        for name in APPENDED:
            cut_torn_line(self.context.folder / name)
        newest = newest_complete(self.context.folder / "checkpoints")
        if newest is None:
            for name in APPENDED:
                _forget(self.context.folder / name)
        return newest

    def run(
        self,
        forward: Callable[[Inputs], Output],
        objective: Objective | Callable[[int], Objective],
        steps: Iterable[Sequence[MicroBatch[Inputs]]],
    ) -> Iterator[StepInfo]:
        """Trains, and yields after each step for the caller to log it. Saves when due and before stopping."""
        ranks = self.context.ranks
        for info in train_steps(forward, self.update, objective, steps, first_step=self.step, ranks=ranks):
            self.step = info.step + 1
            yield info
            if self.step % self.together or self.step == self.total_steps:
                continue
            if ranks.any(self.context.control.stop):
                self.save()
                raise Interrupted(f"stage {self.context.name}: stopped after step {self.step}, which is saved")
            if self.step % self.save_every < self.together:
                self.save()

    def log(self, info: StepInfo, metrics: Mapping[str, float], times: Mapping[str, float], note: str = "") -> None:
        """Appends the step's line to metrics.jsonl and reports progress."""
        line = {
            "step": self.step,
            "loss": info.loss,
            "grad_norm": info.grad_norm,
            "learning_rate": info.learning_rate,
            **info.metrics,
            **metrics,
            "time/update": info.seconds,
            **{f"time/{phase}": seconds for phase, seconds in times.items()},
            "tokens_per_second": info.num_tokens / info.seconds if info.seconds else 0.0,
            "largest_micro_batch": info.largest,
            "memory/most_gb": usage.peak(device()) / 1e9,
        }
        self._append("metrics.jsonl", line)
        if self._tracking is None:
            self._tracking = self._open_trackers()
        self._tracking.log(self.step, line)
        rate = f"{line['tokens_per_second']:,.0f} tokens/s" if info.num_tokens else ""  # 0: on stored features
        told = [note, rate, f"{line['memory/most_gb']:.1f} GB at most"]
        self.context.progress(self.step, self.total_steps, "steps", ", ".join(part for part in told if part))
        if self.step == self.total_steps:
            self._tracking.close()

    def _open_trackers(self) -> Tracking:
        context = self.context
        names = context.track if context.ranks.first else ()
        return Tracking(names, stage=context.name, project=context.recipe, folder=context.folder)

    def save(self) -> None:
        """Writes a checkpoint of the last finished step, unless there is one."""
        if self._saved == self.step:
            return
        folder = self.context.folder
        self._append("journal.jsonl", {"saving": self.step})
        progress = self.progress.state()
        state = capture(self.step, self.params, self.update.optimizer, progress, self.context.fingerprint)
        files = [folder / name for name in APPENDED]
        ranks = self.context.ranks
        save(folder / "checkpoints", state, files=files, keep=self.keep, pinned=self.pinned, ranks=ranks)
        self._append("journal.jsonl", {"saved": self.step})
        self._saved = self.step

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.context.ranks.first:
            append_line(self.context.folder / name, line)

    def forget(self) -> None:
        """Frees the optimiser's moments and the gradients at the end of training."""
        self.update.optimizer.state.clear()
        self.update.optimizer.zero_grad(set_to_none=True)

    def take_pinned(self) -> None:
        """Restores the weights of the pinned checkpoint, if there is one."""
        if self.pinned is not None and self.pinned != self.step:
            folder = self.context.folder / "checkpoints"
            take_weights(folder, self.pinned, self.params, self.context.fingerprint)


@dataclass(slots=True)
class BestValidation:
    """The best validation so far, by the metric validation/`by`.

    If `chosen`, the checkpoint of its step is kept until the end of training, when its weights are restored. `best` is
    its step, value and metrics, which go into checkpoints.
    """

    by: str
    chosen: bool
    best: dict[str, Any] | None = None

    def resume(self, trainer: Trainer) -> None:
        """Pins the best checkpoint of an earlier run."""
        if self.chosen and self.best is not None:
            trainer.pinned = self.best["step"]

    def observe(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Records the validation after the trainer's step, and saves the weights if it is the best so far.

        A value that is absent or not finite is never the best.
        """
        value, sign = metrics.get(f"validation/{self.by}", math.nan), 1.0 if self.by in HIGHER else -1.0
        if not math.isfinite(value) or (self.best is not None and sign * value <= sign * self.best["value"]):
            return
        self.best = {"step": trainer.step, "value": value, "metrics": dict(metrics)}
        if self.chosen:
            trainer.pinned = trainer.step
            if trainer.step < trainer.total_steps:
                trainer.save()

    def take(self, trainer: Trainer) -> dict[str, Any] | None:
        """Restores the best weights if they are `chosen`, and says so if they are not the last. Returns their
        validation."""
        if not self.chosen or self.best is None:
            return None
        if self.best["step"] != trainer.step:
            trainer.context.log(
                f"kept the weights of step {self.best['step']} of {trainer.total_steps}, which has the best "
                f"validation: {self.by} {self.best['value']:.4g}"
            )
        trainer.take_pinned()
        return self.best


def _forget(path: Path) -> None:
    """Removes the log lines of a training that starts over. Finished units of earlier work stay finished."""
    units = [line for line in read_lines(path) if "unit" in line] if path.name == "journal.jsonl" else []
    path.unlink(missing_ok=True)
    for line in units:
        append_line(path, line)
