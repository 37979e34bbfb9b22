"""Statistics of a step's rewards, component by component."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from togi.rewards.combine import Graded

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One component over the answers that it graded. `quantiles` are those at 10, 25, 50, 75 and 90 %."""

    count: int
    mean: float
    deviation: float
    min: float
    max: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardStatistics:
    """A step's rewards. `components` holds "total" too; `gates` and `failures` count reasons and failed graders;
    `num_ungraded` answers have no reward because nothing applies to them."""

    num_answers: int
    components: dict[str, Summary]
    gates: dict[str, int]
    failures: dict[str, int]
    num_below_fail: int
    num_ungraded: int = 0

    @property
    def gate_pass_rate(self) -> float:
        """Share of the graded answers that passed every gate; 1 if no answers were graded."""
        graded = self.num_answers - sum(self.failures.values())
        return 1 - sum(self.gates.values()) / max(graded, 1)

    @property
    def failed_share(self) -> float:
        """Share of the answers that could not be graded."""
        return sum(self.failures.values()) / max(self.num_answers, 1)

    @property
    def ungraded_share(self) -> float:
        """Share of the answers to which no gate and no term applies."""
        return self.num_ungraded / max(self.num_answers, 1)

    @property
    def below_fail_share(self) -> float:
        """Share of the answers that passed every gate but rank below the best possible failing answer."""
        return self.num_below_fail / max(self.num_answers, 1)

    def metrics(self, gates: Sequence[str] = ()) -> dict[str, float]:
        """The numbers under flat names: gate/NAME is a pass rate, reward/NAME/mean, p10 ... p90 a component."""
        rows = {"gate/all": self.gate_pass_rate}
        for name, summary in self.components.items():
            if name in gates:
                rows[f"gate/{name}"] = summary.mean
                continue
            points = zip(QUANTILES, summary.quantiles, strict=True)
            rows[f"reward/{name}/mean"] = summary.mean
            rows |= {f"reward/{name}/p{round(100 * point)}": value for point, value in points}
        return rows | {f"stopped/{reason}": float(count) for reason, count in self.gates.items()}


def summarize(values: Sequence[float]) -> Summary:
    """Statistics of at least one number; the deviation is unbiased, and 0 for a single one."""
    array = np.asarray(values, dtype=np.float64)
    return Summary(
        count=len(array),
        mean=float(array.mean()),
        deviation=float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        min=float(array.min()),
        max=float(array.max()),
        quantiles=tuple(float(value) for value in np.quantile(array, QUANTILES)),
    )


def reward_statistics(graded: Iterable[Graded]) -> RewardStatistics:
    """Statistics of all answers of a step."""
    rows = list(graded)
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in (("total", row.total), *row.components.items()):
            columns.setdefault(name, []).extend([] if value is None else [value])
    return RewardStatistics(
        num_answers=len(rows),
        components={name: summarize(values) for name, values in columns.items() if values},
        gates=_count(row.gate for row in rows if row.failed is None),
        failures=_count(row.failed.partition(": ")[0] for row in rows if row.failed is not None),
        num_below_fail=sum(row.below_fail for row in rows),
        num_ungraded=sum(row.total is None and row.failed is None for row in rows),
    )


def _count(reasons: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(reason for reason in reasons if reason is not None).items()))
