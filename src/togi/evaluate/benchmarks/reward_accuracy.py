"""The table of the benchmark `reward_accuracy`: how often a reward model or a judge prefers the answer that people
prefer.

A subject's credit for a pair is 1 if it prefers the human choice, 0 if it prefers the other answer, 0.5 for a tie.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np

from togi.evaluate.benchmarks.table import (
    Cell,
    Cells,
    Part,
    Table,
    Values,
    cell_of,
    difference_cell,
    mean_cell,
    measured,
    paired,
)
from togi.evaluate.statistics import Bootstrap, Floats, by_cluster, mcnemar, mean_of_shares
from togi.evaluate.table import Metric

ACCURACY = Metric(
    name="accuracy",
    higher_is_better=True,
    note="micro: share of all pairs in which the human choice is preferred; a tie counts half",
    share=True,
)
DECIDED = Metric(
    name="accuracy, ties dropped", higher_is_better=True, note="the same over pairs without a tie", share=True
)
TIES = Metric(name="ties", note="pairs without a preference", share=True)
LENGTH = Metric(
    name="length bias", note="how much more often than people it prefers the longer answer; 0 is fair", share=False
)
ECE = Metric(
    name="calibration error",
    higher_is_better=False,
    note="mean gap between its confidence (sigmoid of the score difference) and its accuracy",
)
MACRO, BY_CATEGORY = "accuracy, macro", "accuracy by category"
BINS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A pair that people judged: its id, its prompt (pairs of one prompt are not independent), its set and category,
    and the lengths of both answers in characters."""

    id: str
    prompt: str
    split: str = ""
    category: str = ""
    chosen: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A subject's verdict on a pair. `margin` is the score of the human choice minus that of the other answer; None for
    a judge, which gives no scores. `credit` is None without a verdict."""

    credit: float | None
    margin: float | None = None


def scored(chosen: float | None, rejected: float | None) -> Reading:
    """The reading of two scores."""
    if chosen is None or rejected is None:
        return Reading(None)
    return Reading(0.5 if chosen == rejected else float(chosen > rejected), chosen - rejected)


def judged(orders: Sequence[float | None], failed: bool = False) -> Reading:
    """The reading of verdicts in both orders, each 1, 0 or 0.5 for the human choice: their mean, with an unreadable one
    counted as half. This is our interpretation of the half points on the card of ca-reward-3b-ja. If a request
    `failed`, the pair has no verdict."""
    return Reading(None if failed else sum(0.5 if each is None else each for each in orders) / len(orders))


def accuracy_table(
    name: str, rows: Sequence[Labelled], readings: Mapping[str, Sequence[Reading]], bootstrap: Bootstrap, baseline: str
) -> Table:
    """The table of all subjects. `readings` are in the order of `rows`. The statistics may raise InputError."""
    owners = [row.prompt for row in rows]
    values: Values = {
        subject: {ACCURACY.name: [one.credit for one in own], DECIDED.name: [_decided(one) for one in own]}
        for subject, own in readings.items()
    }
    ties = {
        subject: {TIES.name: [None if one.credit is None else float(_tied(one)) for one in own]}
        for subject, own in readings.items()
    }
    columns = [ACCURACY, DECIDED]
    cells: dict[str, dict[str, Cell]] = {
        subject: {**row, **measured([TIES], ties, bootstrap, owners)[subject]}
        for subject, row in measured(columns, values, bootstrap, owners).items()
    }
    shown = [*columns, TIES]
    for column, key in _means(rows):
        shown.append(column)
        for subject, own in readings.items():
            cells[subject][column.name] = unweighted(own, [key(row) for row in rows], owners, bootstrap.level)
    shown += [LENGTH, ECE]
    for subject, own in readings.items():
        cells[subject] |= {LENGTH.name: length_bias(rows, own, bootstrap), ECE.name: calibration_error(own)}
    return Table(
        benchmark=name,
        columns=[each for each in shown if each is ACCURACY or any(row[each.name].n for row in cells.values())],
        cells=cells,
        rows=len(rows),
        baseline=baseline if baseline in readings else None,
        differences=paired(columns, values, baseline, bootstrap, owners) if baseline in readings else {},
        parts=[part for part in _parts(rows, readings, bootstrap, baseline) if part.cells],
        items=[row.id for row in rows],
        owners=owners,
        values=values,
        level=bootstrap.level,
    )


def near_chance(table: Table, chance: float = 0.5) -> list[str]:
    """A note for each subject whose accuracy is not distinguishable from `chance`, which its interval contains."""
    own = {name: cells[ACCURACY.name] for name, cells in table.cells.items()}
    near = [
        name
        for name, one in own.items()
        if one.low is not None and one.high is not None and one.low <= chance <= one.high
    ]
    told = "one half" if chance == 0.5 else f"{chance:.1%}"
    return [f"{name} is near chance: the interval of its accuracy contains {told}" for name in near]


def _decided(one: Reading) -> float | None:
    return None if _tied(one) else one.credit


def _tied(one: Reading) -> bool:
    return one.credit == 0.5 or one.margin == 0


def _means(rows: Sequence[Labelled]) -> list[tuple[Metric, Callable[[Labelled], str]]]:
    """The unweighted means over categories and over sets, if the rows have several."""
    found: list[tuple[Metric, Callable[[Labelled], str]]] = []
    for title, what, key in (
        (MACRO, "categories", lambda row: row.category),
        ("accuracy, mean of sets", "sets", lambda row: row.split),
    ):
        count = len(dict.fromkeys(map(key, rows)))
        if count > 1:
            metric = Metric(
                name=title, higher_is_better=True, note=f"unweighted mean of {count} {what}; a tie counts half"
            )
            found.append((metric, key))
    return found


def unweighted(own: Sequence[Reading], groups: Sequence[str], owners: Sequence[str], level: float) -> Cell:
    """The unweighted mean of the groups' accuracies with its interval (`mean_of_shares`); without one for a single
    prompt."""
    credits: dict[str, list[float]] = {}
    names: dict[str, list[str]] = {}
    for one, group, owner in zip(own, groups, owners, strict=True):
        if one.credit is not None:
            credits.setdefault(group, []).append(one.credit)
            names.setdefault(group, []).append(owner)
    if not credits:
        return Cell()
    found, count = mean_of_shares(list(credits.values()), list(names.values()), level), sum(map(len, names.values()))
    if len(dict.fromkeys(chain(*names.values()))) < 2:
        return Cell(value=found.mean, n=count)
    return cell_of(found, n=count)


# --- what sways a subject ---------------------------------------------------------------------------------------------


def length_bias(rows: Sequence[Labelled], own: Sequence[Reading], bootstrap: Bootstrap) -> Cell:
    """How much more often than people a subject prefers the longer answer, over pairs whose lengths differ."""
    known = [
        (row, one.credit)
        for row, one in zip(rows, own, strict=True)
        if one.credit is not None and row.chosen != row.rejected
    ]
    people = [float(row.chosen > row.rejected) for row, _ in known]
    subject = [credit if row.chosen > row.rejected else 1 - credit for row, credit in known]
    shares = replace(LENGTH, share=True)  # a difference of two shares, not shown in percent
    return difference_cell(shares, people, subject, bootstrap, [row.prompt for row, _ in known])


def calibration_error(own: Sequence[Reading]) -> Cell:
    """The expected calibration error over bins of equal width (Naeini et al. 2015). It has no interval, because it is
    biased upwards with few pairs. Only defined for subjects that give scores."""
    sure, right = _sureness(own)
    if not len(sure):
        return Cell()
    bin_N = _bins(sure)
    total = sum(
        abs(float(sure[bin_N == number].mean()) - float(right[bin_N == number].mean())) * int((bin_N == number).sum())
        for number in range(BINS)
        if (bin_N == number).any()
    )
    return Cell(value=total / len(sure), n=len(sure))


def _sureness(own: Sequence[Reading]) -> tuple[Floats, Floats]:
    """(the probability that the scores give to the preferred answer, whether people prefer it too), without ties."""
    margins = [one.margin for one in own if one.margin is not None and one.margin != 0]
    sure = [1 / (1 + math.exp(-min(abs(margin), 700))) for margin in margins]
    return np.array(sure, dtype=np.float64), np.array([float(margin > 0) for margin in margins])


def _bins(sure_N: Floats) -> np.ndarray:
    return np.minimum(((sure_N - 0.5) * 2 * BINS).astype(int), BINS - 1)


# --- tables inside the table ------------------------------------------------------------------------------------------


def _parts(
    rows: Sequence[Labelled], readings: Mapping[str, Sequence[Reading]], bootstrap: Bootstrap, baseline: str
) -> list[Part]:
    found = [
        _by_group(title, rows, readings, [key(row) for row in rows], bootstrap)
        for title, key in (("accuracy by set", lambda row: row.split), (BY_CATEGORY, lambda row: row.category))
        if len(dict.fromkeys(map(key, rows))) > 1
    ]
    lengths = [_longer(row) for row in rows]
    if len(dict.fromkeys(lengths)) > 1:
        found.append(_by_group("accuracy by length of people's choice", rows, readings, lengths, bootstrap))
    return [*found, _drawn(rows, readings, bootstrap), _calibration(readings, bootstrap), _against(readings, baseline)]


def _longer(row: Labelled) -> str:
    if row.chosen == row.rejected:
        return "equally long"
    return "the longer answer" if row.chosen > row.rejected else "the shorter answer"


def _by_group(
    title: str,
    rows: Sequence[Labelled],
    readings: Mapping[str, Sequence[Reading]],
    groups: Sequence[str],
    bootstrap: Bootstrap,
) -> Part:
    names = list(dict.fromkeys(groups))
    columns = [Metric(name=name or "none", higher_is_better=True, share=True) for name in names]
    cells: dict[str, dict[str, Cell]] = {}
    for subject, own in readings.items():
        cells[subject] = {}
        for column, name in zip(columns, names, strict=True):
            at = [place for place, group in enumerate(groups) if group == name]
            owners = [rows[place].prompt for place in at]
            cells[subject][column.name] = mean_cell(column, [own[place].credit for place in at], bootstrap, owners)
    return Part(title=title, columns=columns, cells=cells, note="a tie counts half")


def _drawn(rows: Sequence[Labelled], readings: Mapping[str, Sequence[Reading]], bootstrap: Bootstrap) -> Part:
    """The accuracy with a bootstrap interval over prompts, in addition to Wilson's in the table."""
    column = Metric(name="accuracy", higher_is_better=True, share=True)
    cells: dict[str, dict[str, Cell]] = {}
    for subject, own in readings.items():
        known = [(one.credit, row.prompt) for row, one in zip(rows, own, strict=True) if one.credit is not None]
        if len(dict.fromkeys(prompt for _, prompt in known)) > 1:
            credits, owners = [credit for credit, _ in known], [prompt for _, prompt in known]
            found = cell_of(bootstrap.share(by_cluster(credits, owners)), n=len(known))
            low, high = max(0.0, found.low or 0.0), min(1.0, found.high or 0.0)
            cells[subject] = {column.name: Cell(value=sum(credits) / len(credits), low=low, high=high, n=len(known))}
    return Part(title="bootstrap over prompts", columns=[column], cells=cells, note="BCa")


def _calibration(readings: Mapping[str, Sequence[Reading]], bootstrap: Bootstrap) -> Part:
    """The accuracy of a scorer by its confidence."""
    edges = [0.5 + 0.5 * number / BINS for number in range(BINS + 1)]
    columns = [
        Metric(name=f"{low:.1f} to {high:.1f}", higher_is_better=True, share=True) for low, high in pairwise(edges)
    ]
    cells: dict[str, dict[str, Cell]] = {}
    for subject, own in readings.items():
        sure_N, right_N = _sureness(own)
        if len(sure_N):
            bin_N = _bins(sure_N)
            cells[subject] = {
                column.name: mean_cell(column, right_N[bin_N == number].tolist(), bootstrap)
                for number, column in enumerate(columns)
            }
    note = "accuracy on pairs where its confidence, the sigmoid of the score difference, is in this range"
    return Part(title="calibration", columns=columns, cells=cells, note=note)


def _against(readings: Mapping[str, Sequence[Reading]], baseline: str) -> Part:
    """McNemar's test of each subject against the baseline on the same pairs; a tie is not right."""
    columns = [Metric(name="only it is right"), Metric(name="only the baseline is right"), Metric(name="p")]
    cells: Cells = {
        subject: _mcnemar_cells(readings[baseline], own)
        for subject, own in readings.items()
        if baseline in readings and subject != baseline
    }
    note = f"exact, two-sided, against {baseline}, on pairs that both judged; a tie is not right"
    return Part(title="McNemar's test", columns=columns, cells=cells, note=note)


def _mcnemar_cells(base: Sequence[Reading], own: Sequence[Reading]) -> dict[str, Cell]:
    both = [
        (float(one.credit == 1), float(other.credit == 1))
        for one, other in zip(base, own, strict=True)
        if one.credit is not None and other.credit is not None
    ]
    if not both:
        return {name: Cell() for name in ("only it is right", "only the baseline is right", "p")}
    found = mcnemar([one for one, _ in both], [other for _, other in both])
    return {
        "only it is right": Cell(value=found.only_second, n=len(both)),
        "only the baseline is right": Cell(value=found.only_first, n=len(both)),
        "p": Cell(value=found.p, n=len(both)),
    }
