"""The data that a report shows. Times are in seconds, `started` in seconds since 1970 (UTC)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

StageState = Literal["waiting", "running", "done", "failed", "interrupted"]
RunState = Literal["running", "done", "failed", "interrupted"]
Verdict = Literal["better", "worse", "changed", "unclear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalView:
    """A mean over `n` prompts with its bounds at confidence `level`."""

    mean: float
    low: float
    high: float
    level: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """One metric before and after; `base` and `difference` are None for a value without a counterpart."""

    metric: str
    policy: IntervalView
    base: IntervalView | None = None
    difference: IntervalView | None = None
    higher_is_better: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that the difference's interval supports; None without a difference."""
        if self.difference is None:
            return None
        if self.difference.low <= 0 <= self.difference.high:
            return "unclear"
        if self.higher_is_better is None:
            return "changed"
        return "better" if (self.difference.mean > 0) is self.higher_is_better else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnView:
    """One column of a benchmark. A `share` is from 0 to 1 and is shown in per cent."""

    name: str
    higher_is_better: bool | None = None
    note: str = ""
    share: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CellView:
    """A number with its interval and its number of questions; None means undefined."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str = ""


Cells = Mapping[str, Mapping[str, CellView]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartView:
    """A part of a benchmark's table, such as the table by category; `cells` by subject, then by column."""

    title: str
    columns: Sequence[ColumnView]
    cells: Cells
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotView:
    """A plot of a benchmark's numbers: see `Plot` of togi.evaluate.benchmarks.table."""

    kind: Literal["scatter", "leaderboard", "radar"]
    columns: Sequence[str] = ()
    part: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldView:
    """Published rows next to ours: see `Told` of togi.evaluate.benchmarks.table."""

    title: str
    card: str
    source: str
    licence: str
    how: str
    cells: Cells
    part: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The origin of the rows, and the card's remarks on single ones."""
        notes = "".join(f"; {model}: {note}" for model, note in self.notes.items())
        return f"{self.title}, card of {self.card}: {self.how}{notes}. {self.source}, {self.licence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkView:
    """The result of a benchmark. `differences` are paired differences from `baseline`; `mark` is the manifest's hash;
    `leaks` and `decontaminated` are those of `Table` of togi.evaluate.benchmarks.table."""

    benchmark: str
    columns: Sequence[ColumnView]
    cells: Cells
    rows: int
    mark: str
    level: float = 0.95
    baseline: str | None = None
    differences: Cells = field(default_factory=dict)
    parts: Sequence[PartView] = ()
    plots: Sequence[PlotView] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    leaks: Mapping[str, int | None] = field(default_factory=dict)
    decontaminated: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    published: Sequence[ToldView] = ()

    def told(self, part: str = "") -> list[ToldView]:
        """The published rows of the table, or of a part of it."""
        return [each for each in self.published if each.part == part]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerView:
    """One question with the answers of base and policy, and their scores, if any."""

    question: str
    base: str
    policy: str
    base_score: float | None = None
    policy_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidView:
    """One answer: who gave it, or its side of a pair, and its score, if any."""

    who: str
    text: str
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One question with some of the answers that a stage sampled, scored or paired."""

    question: str
    said: Sequence[SaidView]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmView:
    """An alarm, such as a guard that crossed its threshold."""

    name: str
    message: str
    step: int | None = None
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceView:
    """A data set or model that a stage's records or model were made from, with its licence and terms. `records` is how
    many of the stage's records come from it; None for a model. `inherit`: its terms also bind everything made from
    it."""

    dataset: str
    licence: str = ""
    terms: str | None = None
    inherit: bool = False
    kind: str = "data"
    revision: str = ""
    records: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One stage: its inputs in the graph, its records in and out, its metrics and settings. `adds_up`: the records that
    come in must equal those that go out plus those dropped. `cleans`: it drops records that are in sets on which models
    are measured. `chat` is the command that opens a chat with its model."""

    name: str
    type: str
    state: StageState
    seconds: float | None = None
    cached: bool = False
    fingerprint: str = ""
    inputs: Sequence[str] = ()
    counts_in: int | None = None
    counts_out: int | None = None
    held_out: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    adds_up: bool = False
    cleans: bool = False
    sources: Sequence[SourceView] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    alarms: Sequence[AlarmView] = ()
    rows: Sequence[RowView] = ()
    benchmarks: Sequence[BenchmarkView] = ()
    answers: Sequence[AnswerView] = ()
    answers_note: str = ""
    examples: Sequence[ExampleView] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    chat: str | None = None

    def __repr__(self) -> str:
        """In one line, for notebooks: the metrics of a training have thousands of numbers."""
        steps = f", metrics of {len(self.metrics)} steps" if self.metrics else ""
        return f"<stage {self.name} ({self.type}): {self.state}{steps}>"

    @property
    def compared(self) -> list[RowView]:
        """The rows that compare base and policy."""
        return [row for row in self.rows if row.base is not None]

    @property
    def alone(self) -> list[RowView]:
        """The rows without a counterpart. Next to a comparison they measure another model: a reward model."""
        return [row for row in self.rows if row.base is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run of a recipe. `spent` lists the spending on servers, by model; `overrides` are the settings that its
    command changed."""

    name: str
    state: RunState
    stages: Sequence[StageView]
    started: float | None = None
    seconds: float | None = None
    error: str | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    spent: Sequence[str] = ()
    id: str = ""
    overrides: Sequence[str] = ()

    def __repr__(self) -> str:
        counts = f"{len(self.rows)} before/after rows, {len(self.alarms)} alarms"
        return f"<run {self.name}: {self.state}, {counts}, stages: {', '.join(stage.name for stage in self.stages)}>"

    @property
    def rows(self) -> list[RowView]:
        """The before/after rows of all stages."""
        return [row for stage in self.stages for row in stage.rows]

    @property
    def alarms(self) -> list[tuple[StageView, AlarmView]]:
        """All alarms, each with its stage."""
        return [(stage, alarm) for stage in self.stages for alarm in stage.alarms]
