"""The interface of a benchmark: the settings that all have, and what an evaluation needs to know about its type.

A benchmark has two files: `x.py` declares its settings, its records and its cost; `x_work.py` has
`run(settings, room) -> Table` and may import heavy modules. One line in table.py registers it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, Ref, Settings
from togi.evaluate.published import of_benchmark
from togi.stages.cost import Cost, Inputs


class SubjectRef(Ref):
    """A model that a benchmark measures: a language model or a reward model. Its name is shown in the tables."""

    kinds = ("model", "scorer")
    named = True


class BenchmarkSettings(Settings):
    """Settings that every benchmark has."""

    type: str
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$",
        description="name of the benchmark in tables; its type when absent",
    )
    published: tuple[str, ...] = Field(
        default=(),
        description="published tables of model cards to show below ours, marked as published (docs/published.md)",
    )

    @model_validator(mode="after")
    def _known_tables(self) -> Self:
        allowed = of_benchmark(self.type) if self.published else []
        for name in self.published:
            if name not in allowed:
                tables = f"choose from {', '.join(allowed)}" if allowed else "this benchmark has none"
                raise ValueError(f"published: {name!r} is not a published table of {self.type}; {tables}")
        return self

    @property
    def title(self) -> str:
        """The name shown in tables."""
        return self.name or self.type


@dataclass(frozen=True, slots=True)
class Asked:
    """What a benchmark knows when it estimates its cost: its inputs, the models that it measures, the judge, and the
    baseline."""

    inputs: Inputs
    subjects: Sequence[Ref]
    judge: ModelRef | None
    baseline: Ref | None = None

    @property
    def everyone(self) -> list[str]:
        """The names of the models that answer, with the baseline."""
        beside = [] if self.baseline is None else [self.baseline]
        return list(dict.fromkeys(ref.name for ref in (*self.subjects, *beside)))


def summed(cost: Cost) -> Cost:
    """The cost with what its models write together."""
    cost.samples = cost.calls
    cost.sampled = sum(one.written for one in cost.asked.values())
    return cost


@dataclass(frozen=True, slots=True)
class BenchmarkType:
    """The declaration of a kind of benchmark.

    `work` names a module with `run(settings, room) -> Table`. `subjects` lists the kinds that it can measure: `model`
    (a language model), `scorer` (a reward model). `judged(settings)` returns whether it needs the evaluation's judge;
    `against` is true if it needs a baseline. `reasons` lists every reason for which it drops rows.
    `estimate(settings, asked)` returns its cost. `measures(settings)` returns the records on which it measures models.
    """

    name: str
    settings: type[BenchmarkSettings]
    work: str
    subjects: tuple[str, ...] = ("model",)
    judged: Callable[[Any], bool] = lambda settings: False
    against: bool = False
    reasons: tuple[str, ...] = ()
    estimate: Callable[[Any, Asked], Cost] | None = None
    measures: Callable[[Any], Sequence[Ref]] = lambda settings: ()
