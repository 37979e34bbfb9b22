"""Failed requests of a stage: a few are counted, too many end the stage."""

import math
from dataclasses import dataclass, field

from togi.core.errors import StageError
from togi.core.settings import Settings, runtime_setting
from togi.stages.context import Context


class FailureSettings(Settings):
    """How many requests may fail. The stage's output does not depend on it."""

    max_failed_share: float = runtime_setting(
        0.1,
        "the stage stops when a larger share of its requests fails; a single failure stops it only at 0",
        ge=0,
        le=1,
    )


@dataclass(slots=True)
class Failures:
    """Counts failed requests to `what`, of `total` that a stage makes; one request asks for all answers to a prompt."""

    context: Context
    share: float
    total: int
    what: str
    failed: int = 0
    first: str = field(default="")

    def note(self, failed: int, why: str = "") -> None:
        """Adds failures. Raises StageError if there are too many."""
        self.failed += failed
        self.first = self.first or why
        allowed = max(1, math.floor(self.share * self.total)) if self.share else 0
        if self.failed > allowed:
            raise StageError(
                f"stage {self.context.name}: {self.failed} of {self.total} requests to {self.what} failed, but at most "
                f"{allowed} may fail (max_failed_share {self.share:g}); {self._why()}. All received answers are kept: "
                "fix the cause and redo the stage with --redo, or allow more failures"
            )

    def tell(self, left_out: str) -> None:
        """Raises an alarm if answers failed; `left_out` states what the stage leaves out."""
        if self.failed:
            self.context.alarm(
                "failed",
                f"{self.failed} of {self.total} requests to {self.what} failed, so {left_out}; {self._why()}. To ask "
                "for them again, redo the stage with --redo: stored answers are not requested twice",
                value=self.failed / self.total,
                threshold=self.share,
            )

    def _why(self) -> str:
        return f"the first: {self.first}" if self.first else "the log says why"
