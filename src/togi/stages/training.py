"""What training stages share: an update, one line of metrics a step, checkpoints, and going on after a kill."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch.nn import Parameter

from togi.core.errors import Interrupted
from togi.core.files import append_line, cut_torn_line
from togi.objectives.base import Objective, Output
from togi.stages.base import Context
from togi.train.checkpoint import capture, newest_complete, restore, save
from togi.train.loop import MicroBatch, StepInfo, train_steps
from togi.train.optimizer import Update

Inputs = TypeVar("Inputs")
APPENDED = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "journal.jsonl")


class Progress(Protocol):
    """What of a batch source must survive a kill, besides what follows from the step."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(slots=True)
class Trainer:
    """One training stage at work. `step` counts finished steps."""

    context: Context
    params: Mapping[str, Parameter]
    update: Update
    total_steps: int
    save_every: int
    keep: int
    progress: Progress
    step: int = 0
    _began: float = field(default_factory=time.perf_counter)
    _saved: int = -1

    def resume(self) -> None:
        """Takes up the newest complete checkpoint; without one, the stage begins anew and forgets its lines."""
        for name in APPENDED:
            cut_torn_line(self.context.folder / name)
        newest = newest_complete(self.context.folder / "checkpoints")
        if newest is None:
            for name in APPENDED:
                (self.context.folder / name).unlink(missing_ok=True)
            return
        state = restore(newest, self.params, self.update.optimizer)
        self.progress.restore(state.progress)
        self.step = self._saved = state.step
        self.context.log(f"going on after step {state.step} of {self.total_steps}")

    def run(
        self,
        forward: Callable[[Inputs], Output],
        objective: Objective | Callable[[int], Objective],
        steps: Iterable[Sequence[MicroBatch[Inputs]]],
    ) -> Iterator[StepInfo]:
        """Trains, and yields after each step, for the caller to log. Saves when it is due, and before stopping."""
        for info in train_steps(forward, self.update, objective, steps, first_step=self.step):
            self.step = info.step + 1
            yield info
            if self.context.control.stop and self.step < self.total_steps:
                self.save()
                raise Interrupted(f"stage {self.context.name}: stopped after step {self.step}, which is saved")
            if self.step % self.save_every == 0 and self.step < self.total_steps:
                self.save()

    def log(self, info: StepInfo, metrics: Mapping[str, float], times: Mapping[str, float], note: str = "") -> None:
        """Appends the step's line to metrics.jsonl and tells how far the work is."""
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
        }
        append_line(self.context.folder / "metrics.jsonl", line)
        self.context.progress(self.step, self.total_steps, "steps", note)

    def save(self) -> None:
        """Writes a checkpoint of the last finished step, once."""
        if self._saved == self.step:
            return
        folder = self.context.folder
        append_line(folder / "journal.jsonl", {"saving": self.step})
        state = capture(self.step, self.params, self.update.optimizer, self.progress.state())
        save(folder / "checkpoints", state, files=[folder / name for name in APPENDED], keep=self.keep)
        append_line(folder / "journal.jsonl", {"saved": self.step})
        self._saved = self.step
