"""Rows of one prompt with right and wrong answers, each with a score: best-of-k accuracy, and the score of the subset
Ties of RewardBench 2 (Malik et al., arXiv 2506.01937; allenai/reward-bench, `rewardbench/utils.py`).

Ties asks each of its questions twice: in the row `ref` with one right answer, in the row `tied` with several. Names:
`_Q` one value per question.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from togi.evaluate.benchmarks.reward_accuracy import BY_CATEGORY, MACRO, Labelled, Reading, unweighted
from togi.evaluate.benchmarks.table import Cell, Part, Table, difference_cell, mean_cell
from togi.evaluate.statistics import Bootstrap, Floats, wilson
from togi.evaluate.table import Metric

TERMS = (
    (0.3, Metric(name="tied: right answers first", higher_is_better=True, share=True)),
    (0.3, Metric(name="ref: right answer first", higher_is_better=True, share=True)),
    (0.2, Metric(name="gap of tied > spread", higher_is_better=True, share=True)),
    (0.2, Metric(name="smaller gap > spread", higher_is_better=True, share=True)),
    (0.01, Metric(name="size of the gap", higher_is_better=True, least=-1.0, most=1.0)),
)
"""The parts of the score of Ties, with their weights."""
LEAST, MOST = -0.01, 1.01
SCORE = Metric(
    name="Ties score", higher_is_better=True, least=LEAST, most=MOST,
    note="RewardBench 2: accuracy with several right answers, and gaps between right and wrong ones",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ranked:
    """The scores of the right and of the wrong answers of a row, at least one of each."""

    right: Sequence[float]
    wrong: Sequence[float]

    @property
    def gap(self) -> float:
        """The lowest score of a right answer minus the highest of a wrong one."""
        return min(self.right) - max(self.wrong)

    @property
    def spread(self) -> float:
        """The highest score of a right answer minus the lowest of one."""
        return max(self.right) - min(self.right)


def best_of(row: Ranked | None) -> Reading:
    """The reading of a row with one right answer: it is right if that answer has the highest score of all. If it shares
    that score with n others, the credit is 1 / (1 + n). None, a row without all scores, has no credit."""
    if row is None:
        return Reading(None)
    (right,) = row.right
    if row.gap < 0:
        return Reading(0.0)
    ties = sum(score == right for score in row.wrong)
    return Reading(1 / (1 + ties), 0.0 if ties else None)


# --- the subset Ties --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A question of Ties: its row with one right answer and its row with several. None for a row that the data do not
    have, or that has no scores."""

    ref: Ranked | None
    tied: Ranked | None

    def terms(self) -> list[float]:
        """The values of `TERMS`; NaN for those that it does not have."""
        tied = math.nan if self.tied is None else float(self.tied.gap > 0)
        ref = math.nan if self.ref is None else float(self.ref.gap > 0)
        if self.ref is None or self.tied is None:
            return [tied, ref, math.nan, math.nan, math.nan]
        spread, gap = self.tied.spread, min(self.ref.gap, self.tied.gap)
        return [tied, ref, float(self.tied.gap > spread), float(gap > spread), _size(gap, spread)]


def _size(gap: float, spread: float) -> float:
    """tanh(gap / spread - 1), from -1 to 1; with equal scores of all right answers its limit, and 0 if the gap is 0
    too."""
    if spread == 0:
        return float(np.sign(gap))
    return math.tanh(gap / spread - 1)


def ties_of(questions: Sequence[Question]) -> Floats:
    """One value per question (Q,), whose mean over the known ones is the score of Ties: the weighted sum of the means
    of its terms, linearised where a question lacks one of its rows. NaN for a question without scores; NaN everywhere
    if no question has both rows."""
    term_QT = np.array([each.terms() for each in questions], dtype=np.float64).reshape(-1, len(TERMS))
    known_QT = ~np.isnan(term_QT)
    known_Q = known_QT.any(axis=1)
    count_T = known_QT.sum(axis=0)
    if not count_T.all():
        return np.full(len(questions), np.nan)
    weight_T = np.array([weight for weight, _ in TERMS])
    mean_T = np.nansum(term_QT, axis=0) / count_T
    away_QT = np.where(known_QT, term_QT - mean_T, 0.0) * known_Q.sum() / count_T
    return np.where(known_Q, (mean_T + away_QT) @ weight_T, np.nan)


def ties_cell(values_Q: Floats, level: float) -> Cell:
    """The score of Ties with an interval over questions: Wilson's for the score as a share of its range. Its number of
    rows is the number of right or wrong rows that would vary as much, but at most twice the number of questions. So the
    interval has width even if all questions are right."""
    values_Q = values_Q[~np.isnan(values_Q)]
    count = len(values_Q)
    if not count:
        return Cell()
    mean, span = float(values_Q.mean()), MOST - LEAST
    share = min(max((mean - LEAST) / span, 0.0), 1.0)
    variance = float(values_Q.var(ddof=1)) / span**2 if count > 1 else 0.25
    rows = max(1.0, min(2.0 * count, count * share * (1 - share) / variance if variance > 0 else math.inf))
    found = wilson(share * rows, rows, level)
    return Cell(value=mean, low=LEAST + span * found.low, high=LEAST + span * found.high, n=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """The questions of Ties: their names, each one's prompt (questions of one prompt are not independent), their
    category if it is the same for all, and what each subject's scores say, in this order."""

    names: Sequence[str]
    prompts: Sequence[str]
    category: str
    questions: Mapping[str, Sequence[Question]]


def with_ties(
    table: Table, ties: Ties, rows: Sequence[Labelled], readings: Mapping[str, Sequence[Reading]], bootstrap: Bootstrap
) -> Table:
    """The table of the other rows with the score of Ties, which counts as one more category of the macro mean."""
    values = {name: [_number(one) for one in ties_of(own)] for name, own in ties.questions.items()}
    cells = {
        name: {**own, SCORE.name: ties_cell(np.array(values[name], dtype=np.float64), bootstrap.level)}
        for name, own in table.cells.items()
    }
    columns = [*table.columns, SCORE]
    grouped = bool(ties.category) and bool(rows) and ties.category not in [row.category for row in rows]
    if grouped:
        macro = _macro_of(rows)
        columns = [macro if column.name == MACRO else column for column in table.columns]
        columns += [SCORE] if macro in columns else [macro, SCORE]
        for name, own in readings.items():
            cells[name][MACRO] = _with_score(own, rows, cells[name][SCORE.name], bootstrap.level)
    more = [None] * len(ties.names)
    return replace(
        table,
        columns=columns,
        cells=cells,
        rows=table.rows + len(ties.names),
        differences=_differences(table, values, ties, bootstrap),
        parts=[*(_beside(part, cells, ties) if grouped else part for part in table.parts), _terms(ties, bootstrap)],
        items=[*table.items, *ties.names],
        owners=[*table.owners, *ties.prompts],
        values={
            name: {
                **{column: [*numbers, *more] for column, numbers in own.items()},
                SCORE.name: [None] * len(table.items) + values[name],
            }
            for name, own in table.values.items()
        },
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _differences(
    table: Table, values: Mapping[str, Sequence[float | None]], ties: Ties, bootstrap: Bootstrap
) -> dict[str, dict[str, Cell]]:
    base = values.get(table.baseline or "")
    if base is None:
        return {}
    return {
        name: {**own, SCORE.name: difference_cell(SCORE, base, values[name], bootstrap, ties.prompts)}
        for name, own in table.differences.items()
    }


def _beside(part: Part, cells: Mapping[str, Mapping[str, Cell]], ties: Ties) -> Part:
    """The accuracy by category with the score of Ties as one more column."""
    if part.title != BY_CATEGORY:
        return part
    column = Metric(name=ties.category, higher_is_better=True, note=SCORE.note, share=True)
    own = {name: {**row, column.name: cells[name][SCORE.name]} for name, row in part.cells.items()}
    note = f"{part.note}; {ties.category} is the Ties score"
    return replace(part, columns=[*part.columns, column], cells=own, note=note)


def _terms(ties: Ties, bootstrap: Bootstrap) -> Part:
    """The terms of the score, each over the questions that have it."""
    cells = {}
    for name, own in ties.questions.items():
        term_QT = [each.terms() for each in own]
        cells[name] = {
            column.name: mean_cell(column, [_number(terms[place]) for terms in term_QT], bootstrap, ties.prompts)
            for place, (_, column) in enumerate(TERMS)
        }
    weights = ", ".join(f"{weight:g}" for weight, _ in TERMS)
    note = (
        "gap: lowest right score minus highest wrong one; spread: highest right score minus lowest; size of the gap: "
        f"tanh(smaller gap / spread - 1). The score weighs them {weights}"
    )
    return Part(title="Ties score, its parts", columns=[column for _, column in TERMS], cells=cells, note=note)


def _macro_of(rows: Sequence[Labelled]) -> Metric:
    count = len(dict.fromkeys(row.category for row in rows))
    note = f"unweighted mean of {count} categories and the Ties score; a tie counts half"
    return Metric(name=MACRO, higher_is_better=True, note=note)


def _with_score(own: Sequence[Reading], rows: Sequence[Labelled], score: Cell, level: float) -> Cell:
    """The unweighted mean of the accuracies of K categories and the score of Ties, whose intervals are combined (Zou
    and Donner 2008, Stat. Med. 27:1693)."""
    names = [row.category for row in rows]
    found = unweighted(own, names, [row.prompt for row in rows], level)
    if None in (found.value, score.value):
        return Cell()
    count = len(dict.fromkeys(name for name, one in zip(names, own, strict=True) if one.credit is not None))
    parts = [(count / (count + 1), found), (1 / (count + 1), score)]
    mean, total = sum(weight * (one.value or 0.0) for weight, one in parts), found.n + score.n
    if None in (found.low, found.high):
        return Cell(value=mean, n=total)
    below = math.hypot(*(weight * ((one.value or 0.0) - (one.low or 0.0)) for weight, one in parts))
    above = math.hypot(*(weight * ((one.high or 0.0) - (one.value or 0.0)) for weight, one in parts))
    return Cell(value=mean, low=mean - below, high=mean + above, n=total)
