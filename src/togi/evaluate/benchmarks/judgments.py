"""Judges' grades of answers, and the table cells made from them.

Three failures are counted separately: the model gave no answer, the request to the judge failed, or the judge's text
has no grade. Only safety sets turn the first two into a grade; elsewhere they are left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from togi.evaluate.benchmarks.table import Cell, Cells, Table, Values, cell_of, paired
from togi.evaluate.statistics import Bootstrap, mean_of_rounds, round_means, share_of_rounds
from togi.evaluate.table import Metric

Outcome = Literal["grade", "unreadable", "failed", "no_answer"]
API_ERRORS: tuple[Outcome, ...] = ("failed", "no_answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """The judgment of one answer: its question, turn and round (both from 1), the category of the question, the
    outcome, and the grade if there is one; `metrics` are the grades of single metrics, if the judge gave several."""

    question: str
    turn: int = 1
    round: int = 1
    category: str = ""
    outcome: Outcome = "grade"
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def item(self) -> str:
        """The name of the answer's item, the same for all subjects."""
        return f"{self.question}/{self.turn}/{self.round}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a table has besides its numbers: its name, the bootstrap, the baseline that others are compared with, the
    manifest, leaks and notes."""

    name: str
    bootstrap: Bootstrap
    baseline: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    leaks: Mapping[str, int | None] = field(default_factory=dict)
    notes: Sequence[str] = ()


Judged = Mapping[str, Sequence[Judgment]]
"""The judgments of each subject, over the same questions, turns and rounds."""

ERRORS = Metric(
    name="api errors", higher_is_better=False, note="no answer of the model, or no reply of the judge", share=True
)
UNREADABLE = Metric(name="unreadable", higher_is_better=False, note="the judge's text has no grade", share=True)


def score_cell(judgments: Iterable[Judgment], level: float) -> Cell:
    """The mean grade of each round, averaged over the rounds, with its interval by question; `n` counts the grades."""
    own = list(judgments)
    known = [each for each in own if each.score is not None]
    scores, rounds = [each.score or 0.0 for each in known], [each.round for each in known]
    if not known:
        return Cell(note=f"no grade of {len(own)}" if own else "")
    means = round_means(scores, rounds)
    found = mean_of_rounds(scores, rounds, [each.question for each in known], level)
    return cell_of(found, value=sum(means) / len(means), n=len(known))


def share_cell(judgments: Iterable[Judgment], hit: Callable[[Judgment], bool], level: float, note: str = "") -> Cell:
    """The share of judgments for which `hit` is true, averaged over the rounds, with its interval by question."""
    known = list(judgments)
    hits = [float(hit(each)) for each in known]
    if not known:
        return Cell(note=note)
    found = share_of_rounds(hits, [each.round for each in known], [each.question for each in known], level)
    return cell_of(found, n=len(known), note=note or f"{sum(hits):.0f} of {len(known)}")


def error_cells(judgments: Sequence[Judgment], level: float) -> dict[str, Cell]:
    """The shares of both kinds of failure, by the name of their column."""
    return {
        ERRORS.name: share_cell(judgments, lambda each: each.outcome in API_ERRORS, level),
        UNREADABLE.name: share_cell(judgments, lambda each: each.outcome == "unreadable", level),
    }


def dropped(judged: Judged) -> dict[str, int]:
    """How many judgments of all subjects have no grade, by reason."""
    counts: dict[str, int] = {}
    for each in (each for own in judged.values() for each in own if each.score is None):
        counts[each.outcome] = counts.get(each.outcome, 0) + 1
    return counts


def categories(judged: Judged) -> list[str]:
    """The categories of the questions, in their order; empty if no question names one."""
    own = next(iter(judged.values()), ())
    return [name for name in dict.fromkeys(each.category for each in own) if name]


def category_cells(judged: Judged, level: float) -> Cells:
    """The mean grade of each subject in each category."""
    names = categories(judged)
    return {
        subject: {name: score_cell((each for each in own if each.category == name), level) for name in names}
        for subject, own in judged.items()
    }


def metric_cells(judged: Judged, level: float) -> Cells:
    """The mean grade of each subject by metric, if the judge gave grades of several."""
    names = list(dict.fromkeys(name for own in judged.values() for each in own for name in each.metrics))
    return {
        subject: {name: score_cell((replace(e, score=e.metrics.get(name)) for e in own), level) for name in names}
        for subject, own in judged.items()
    }


def round_cells(judged: Judged, level: float) -> Cells:
    """The mean grade of each subject in each round."""
    rounds = list(dict.fromkeys(each.round for own in judged.values() for each in own))
    return {
        subject: {f"round {number}": score_cell((e for e in own if e.round == number), level) for number in rounds}
        for subject, own in judged.items()
    }


def items(judged: Judged) -> tuple[list[str], list[str]]:
    """(items, owners): every answer expected of a subject, and its question."""
    own = next(iter(judged.values()), ())
    return [each.item for each in own], [each.question for each in own]


def item_values(judged: Judged, columns: Mapping[str, Callable[[Judgment], float | None]]) -> Values:
    """One number per item, subject and column."""
    return {
        subject: {name: [value(each) for each in own] for name, value in columns.items()}
        for subject, own in judged.items()
    }


def judged_table(
    judged: Judged,
    frame: Frame,
    cells: Cells,
    values: Values,
    compared: Sequence[Metric],
    others: Sequence[Metric],
) -> Table:
    """The table of a judged benchmark: first the columns `compared` with the baseline, paired by answer, then the
    `others`, then the shares of failures."""
    names, owners = items(judged)
    return Table(
        benchmark=frame.name,
        columns=[*compared, *others, ERRORS, UNREADABLE],
        cells=cells,
        rows=len(dict.fromkeys(owners)),
        baseline=frame.baseline,
        differences=paired(compared, values, frame.baseline, frame.bootstrap, owners) if frame.baseline else {},
        items=names,
        owners=owners,
        values=values,
        dropped=dropped(judged),
        leaks=frame.leaks,
        notes=frame.notes,
        manifest=frame.manifest,
        level=frame.bootstrap.level,
    )
