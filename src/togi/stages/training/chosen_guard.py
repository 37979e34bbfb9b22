"""Watches the log-probability of chosen answers during preference training.

A preference loss also falls when both answers become less likely, the rejected one faster. The model then forgets the
chosen answers, while loss, margin and accuracy look good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from togi.core.errors import StageError
from togi.core.settings import Settings
from togi.stages.context import Context


class FallingChosen(Settings):
    """When to raise an alarm because chosen answers become less likely."""

    max_fall: float = Field(
        default=0.5,
        gt=0,
        description="largest fall of the chosen answers' log-probability below its start, in nats per token, averaged "
        "over `window`",
    )
    window: int = Field(default=5, ge=1, description="optimiser steps to average over, at the start and now")
    stop: bool = Field(default=False, description="stop the run as well as raise the alarm")


@dataclass(slots=True)
class FallWatch:
    """The state of a `FallingChosen` guard. `start` is the baseline: a known value, or the mean of the first window."""

    settings: FallingChosen
    start: float | None = None
    recent: list[float] = field(default_factory=list)
    below: bool = False

    def state(self) -> dict[str, Any]:
        return {"start": self.start, "recent": list(self.recent), "below": self.below}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.start, self.recent, self.below = state["start"], list(state["recent"]), state["below"]

    def observe(self, step: int, value: float, context: Context) -> None:
        """Records the value of a step, and raises an alarm when the fall begins. Raises StageError if the recipe sets
        `stop`."""
        window = self.settings.window
        self.recent = [*self.recent, value][-window:]
        if len(self.recent) < window:
            return
        now = sum(self.recent) / window
        self.start = now if self.start is None else self.start
        fall = self.start - now
        began = fall > self.settings.max_fall and not self.below
        self.below = fall > self.settings.max_fall
        if not began:
            return
        message = (
            f"the chosen answers fell by {fall:.3g} nats per token below their start at step {step} (mean of {window} "
            f"steps; allowed: {self.settings.max_fall:g}): lower the learning rate, or add a loss on the chosen "
            "answers (sft_weight, chosen_sft_ratio)"
        )
        context.alarm("falling_chosen", message, step=step, value=-fall, threshold=-self.settings.max_fall)
        if self.settings.stop:
            raise StageError(f"stage {context.name}: stopped by a guard: {message}")
