"""Guards: thresholds on metrics that reveal reward hacking, or a run that has stopped learning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from togi.core.errors import StageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Watches one metric. `patience` measurements in a row outside [min, max] raise an alarm."""

    metric: str
    min: float | None = None
    max: float | None = None
    patience: int = 1
    stop: bool = False

    def broken_bound(self, value: float) -> float | None:
        """The bound that `value` crosses; None if it is inside. NaN is outside."""
        if self.min is not None and not value >= self.min:
            return self.min
        return self.max if self.max is not None and not value <= self.max else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A guard's threshold was crossed. `stop`: the guard ends the run."""

    name: str
    step: int
    value: float
    threshold: float
    message: str
    stop: bool = False


@dataclass(slots=True)
class GuardState:
    """Guards, and how often in a row each was crossed. Checkpoints must keep `crossed`."""

    guards: Sequence[Guard]
    crossed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.crossed = self.crossed or [0] * len(self.guards)

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """The alarms that begin at this step, at most one per guard. A metric that was not measured changes nothing."""
        alarms = [self._one(index, step, metrics) for index in range(len(self.guards))]
        return [alarm for alarm in alarms if alarm is not None]

    def _one(self, index: int, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        guard = self.guards[index]
        if guard.metric not in metrics:
            return None
        value = metrics[guard.metric]
        bound = guard.broken_bound(value)
        self.crossed[index] = 0 if bound is None else self.crossed[index] + 1
        if bound is None or self.crossed[index] != guard.patience:
            return None
        return _alarm(guard, step, value, bound)


def _alarm(guard: Guard, step: int, value: float, bound: float) -> Alarm:
    side = "below" if bound == guard.min else "above"
    times = f" for {guard.patience} measurements in a row" if guard.patience > 1 else ""
    message = f"{guard.metric} is {value:.4g} at step {step}, {side} its bound of {bound:g}{times}"
    return Alarm(name=guard.metric, step=step, value=value, threshold=bound, message=message, stop=guard.stop)


def stop_on(alarms: Sequence[Alarm]) -> None:
    """Raises StageError if one of the alarms ends the run."""
    reasons = [alarm.message for alarm in alarms if alarm.stop]
    if reasons:
        raise StageError(f"stopped by a guard: {'; '.join(reasons)}")
