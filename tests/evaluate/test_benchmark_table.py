"""The table of a benchmark: numbers with intervals, and undefined numbers."""

import json

import pytest

from togi.evaluate.benchmarks.chat_health import CHARACTERS, TOKENS
from togi.evaluate.benchmarks.diversity import ENTROPY
from togi.evaluate.benchmarks.table import Cell, Part, Table, difference_cell, mean_cell, measured, paired
from togi.evaluate.statistics import Bootstrap, mean_interval, wilson
from togi.evaluate.table import Metric

DRAWS = Bootstrap(seed=1, resamples=200)
GRADE, SHARE = Metric(name="grade", higher_is_better=True), Metric(name="share", higher_is_better=True, share=True)


def test_a_mean_of_grades_has_students_interval_and_leaves_out_what_is_missing():
    cell, expected = mean_cell(GRADE, [1.0, None, 2.0, 6.0], DRAWS), mean_interval([1.0, 2.0, 6.0], 0.95)
    assert (cell.value, cell.low, cell.high, cell.n) == (3.0, expected.low, expected.high, 3)


def test_answers_to_one_question_are_not_independent():
    apart = mean_cell(GRADE, [1.0, 1.0, 5.0, 5.0], DRAWS)
    together = mean_cell(GRADE, [1.0, 1.0, 5.0, 5.0], DRAWS, ["p", "p", "q", "q"])
    assert together.value == apart.value == 3.0 and together.n == 4
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_a_share_has_wilsons_interval():
    cell, expected = mean_cell(SHARE, [1.0, 0.0, 0.5, None], DRAWS), wilson(1.5, 3, 0.95)
    assert (cell.value, cell.low, cell.high, cell.n) == (0.5, expected.low, expected.high, 3)


@pytest.mark.parametrize("column", [GRADE, SHARE], ids=["grade", "share"])
@pytest.mark.parametrize(
    ("values", "owners", "value", "n"),
    [
        ([], [], None, 0),
        ([None, None], ["p", "q"], None, 0),
        ([1.0], ["p"], 1.0, 1),
        ([1.0, 1.0], ["p", "p"], 1.0, 2),
        ([1.0, 1.0, 1.0], ["p", "q", "r"], 1.0, 3),
    ],
    ids=["nothing", "all missing", "one number", "one question", "no variance"],
)
def test_what_cannot_be_estimated_has_no_bounds_and_keeps_its_count(column, values, owners, value, n: int):
    cell = mean_cell(column, values, DRAWS, owners)
    assert (cell.value, cell.n) == (value, n)
    known = column.share and len(set(owners)) == n > 0  # Wilson's interval is defined for a single row
    assert (cell.low is not None) is known
    json.dumps(cell.to_json(), allow_nan=False)


def test_a_share_that_does_not_vary_between_none_and_all_has_wide_bounds():
    cell = mean_cell(SHARE, [0.75, 0.75, 0.75], DRAWS)
    assert (cell.value, cell.n) == (0.75, 3) and 0 < cell.low < 0.25 and 0.9 < cell.high < 1


def test_a_difference_is_of_the_questions_that_both_have():
    cell = difference_cell(GRADE, [1.0, 2.0, None, 4.0], [2.0, 4.0, 9.0, None], DRAWS)
    assert (cell.value, cell.n) == (1.5, 2) and 1 <= cell.low < cell.high <= 2


@pytest.mark.parametrize(
    ("base", "other", "value", "n"),
    [([], [], None, 0), ([None], [1.0], None, 0), ([1.0], [3.0], 2.0, 1), ([1.0, 2.0], [2.0, 3.0], 1.0, 2)],
    ids=["nothing", "none in common", "one question", "always the same"],
)
def test_a_difference_that_cannot_be_estimated_has_no_bounds(base, other, value, n: int):
    cell = difference_cell(GRADE, base, other, DRAWS)
    assert (cell.value, cell.low, cell.high, cell.n) == (value, None, None, n)


def test_a_share_that_never_differs_has_the_bounds_of_what_was_not_seen():
    cell = difference_cell(SHARE, [1.0] * 20, [1.0] * 20, DRAWS)
    assert cell.value == 0 and -0.2 < cell.low < 0 < cell.high < 0.2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_cell_holds_what_is_no_number(value: float):
    with pytest.raises(ValueError, match="use None for an undefined number"):
        Cell(value=value)


def example() -> Table:
    values = {"a": {"grade": [1.0, 2.0, 4.0]}, "b": {"grade": [2.0, 2.0, 8.0]}}
    part = Part(title="by kind", columns=[SHARE], cells={"b": {"share": Cell(value=0.5, n=2)}})
    return Table(
        benchmark="held",
        columns=[GRADE],
        cells=measured([GRADE], values, DRAWS),
        rows=3,
        baseline="a",
        differences=paired([GRADE], values, "a", DRAWS),
        parts=[part],
        items=["p.0", "p.1", "q.0"],
        owners=["p", "p", "q"],
        values=values,
        manifest={"common": {"seed": 1}},
    )


def test_figures_hold_each_number_once():
    found = {(each.metric, each.subject, each.against): each for each in example().figures()}
    assert {key: figure.value for key, figure in found.items()} == {
        ("grade", "a", None): pytest.approx(7 / 3),
        ("grade", "b", None): 4.0,
        ("grade", "b", "a"): pytest.approx(5 / 3),
        ("by kind: share", "b", None): 0.5,
    }
    assert len({figure.id for figure in found.values()}) == len(found)


def test_the_numbers_of_single_questions_name_the_question_and_its_owner():
    found = [(each.subject, each.parents, each.value) for each in example().item_figures()]
    assert found[:3] == [("a", ("p.0", "p"), 1.0), ("a", ("p.1", "p"), 2.0), ("a", ("q.0", "q"), 4.0)]
    assert len(found) == 6


def test_the_mark_follows_the_manifest():
    one, same = example(), example()
    other = Table(**{name: getattr(one, name) for name in Table.__slots__} | {"manifest": {"common": {"seed": 2}}})
    assert one.mark == same.mark == one.to_json()["mark"] != other.mark


def test_no_interval_leaves_the_values_that_a_column_can_have():
    similar = Metric(name="ROUGE-L", most=1.0)
    low, high = mean_cell(similar, [0.0, 0.1, 0.4], DRAWS), mean_cell(similar, [0.9, 1.0, 0.6], DRAWS)
    assert low.low == 0.0 and high.high == 1.0
    assert 0.4 < (low.high or 0) < 1 and 0 < (high.low or 0) < 0.5
    change = difference_cell(similar, [0.0, 0.0, 0.1], [1.0, 1.0, 0.6], Bootstrap(seed=3, resamples=200))
    assert -1 <= (change.low or -2) <= (change.high or 2) <= 1
    alike = mean_cell(Metric(name="homogenisation", least=-1.0, most=1.0), [-0.9, -1.0, 0.1], DRAWS)
    assert alike.low == -1.0
    for column in (CHARACTERS, TOKENS, ENTROPY):
        length = mean_cell(column, [0.0, 0.0, 256.0], DRAWS)
        assert length.low == 0.0 and (length.high or 0) > 256.0
    free = mean_cell(Metric(name="reward"), [0.0, 0.0, 256.0], DRAWS)
    assert (free.low or 0) < 0.0
