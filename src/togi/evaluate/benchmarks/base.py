"""The interface of measures that compare the answers of several subjects to the same prompts: subjects, measures,
results.

A whole benchmark returns a `Table` (togi.evaluate.benchmarks.table).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import compress
from typing import Any, Protocol

from togi.core.records import Figure, Prompt
from togi.core.seeds import digest
from togi.evaluate.statistics import Bootstrap, Interval
from togi.evaluate.table import Metric, Row, compare


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's name and its answers: the same number per prompt, in the order of the prompts. `texts` have no
    terminator, `closed` is true for answers that had one, and `lengths` are in tokens."""

    name: str
    texts: list[str]
    closed: list[bool]
    lengths: list[int]


@dataclass(frozen=True, slots=True)
class Answered:
    """What all subjects share: the prompt of each answer, the number of answers per prompt, and the bootstrap."""

    owners: Sequence[Prompt]
    samples: int
    bootstrap: Bootstrap

    def row(self, metric: Metric, base: Sequence[float], other: Sequence[float]) -> Row:
        """A metric of two subjects, from one value per answer: means over each prompt's answers, paired by prompt."""
        ids = [prompt.id for prompt in self.owners]
        base_N, other_N = ([float(value) for value in values] for values in (base, other))
        return compare(metric, base_N, other_N, self.bootstrap, ids)

    def only(self, kept: Sequence[bool]) -> "Answered":
        """The same for a part of the answers: all or none of each prompt."""
        return replace(self, owners=list(compress(self.owners, kept)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The result of a measure: the rows of each subject against the first one, the baseline, by the subject's name.

    `values` are the numbers of single answers by subject, if the measure has them (None for an answer without one).
    `manifest` describes how the numbers were obtained.
    """

    benchmark: str
    baseline: str
    rows: Mapping[str, list[Row]]
    values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def figures(self) -> list[Figure]:
        """Every number of the table as a record of the kind `tables`, each once."""
        found: dict[str, Figure] = {}
        for name, rows in self.rows.items():
            for row in rows:
                for figure in self._of(row, name):
                    found.setdefault(figure.id, figure)
        return list(found.values())

    def items(self, answered: Answered) -> list[Figure]:
        """The numbers of single answers, if any, as records; their parents are the prompts."""
        first = next(iter(self.rows.values()))[0]
        return [
            Figure(
                id=digest([self.benchmark, first.metric, name, prompt.id, place % answered.samples])[:16],
                parents=(prompt.id,),
                benchmark=self.benchmark,
                metric=first.metric,
                subject=name,
                value=value,
                higher_is_better=first.higher_is_better,
            )
            for name, values in self.values.items()
            for place, (prompt, value) in enumerate(zip(answered.owners, values, strict=True))
        ]

    def _of(self, row: Row, name: str) -> list[Figure]:
        numbers = [
            (self.baseline, None, row.base),
            (name, None, row.policy),
            (name, self.baseline, row.difference),
        ]
        return [self._figure(row, who, against, number) for who, against, number in numbers if number is not None]

    def _figure(self, row: Row, subject: str, against: str | None, interval: Interval) -> Figure:
        return Figure(
            id=digest([self.benchmark, row.metric, subject, against])[:16],
            benchmark=self.benchmark,
            metric=row.metric,
            subject=subject,
            against=against,
            value=interval.mean,
            low=interval.low,
            high=interval.high,
            count=interval.n,
            higher_is_better=row.higher_is_better,
            note=row.note,
            extra=self.manifest,
        )


class Benchmark(Protocol):
    """A measure of two or more subjects; the first is the baseline."""

    @property
    def name(self) -> str: ...

    def run(self, subjects: Sequence[Subject], answered: Answered) -> Compared:
        """The rows of all subjects. Raises InputError for an answer that cannot be measured."""
        ...


def manifest(answered: Answered, **more: Any) -> dict[str, Any]:
    """How figures were obtained: the number of answers per prompt, and the settings of the intervals."""
    return {"samples": answered.samples, "intervals": asdict(answered.bootstrap), **more}
