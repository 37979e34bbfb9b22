"""The accuracy of scorers and judges, against numbers computed by hand."""

import json
import math

import pytest

from togi.evaluate.benchmarks.reward_accuracy import (
    Labelled,
    Reading,
    accuracy_table,
    calibration_error,
    judged,
    length_bias,
    near_chance,
    scored,
)
from togi.evaluate.benchmarks.table import Table
from togi.evaluate.statistics import Bootstrap, wilson

DRAWS = Bootstrap(seed=1, resamples=200)
RIGHT, WRONG, TIE, NONE = Reading(1.0), Reading(0.0), Reading(0.5), Reading(None)


def rows(count: int, **columns: list) -> list[Labelled]:
    """Pairs, each with a prompt of its own; `columns` hold one value per pair."""
    extra = [{name: values[place] for name, values in columns.items()} for place in range(count)]
    return [Labelled(id=f"r{place}", **{"prompt": f"p{place}"} | extra[place]) for place in range(count)]


def table(readings: dict[str, list[Reading]], baseline: str = "", **columns: list) -> Table:
    count = len(next(iter(readings.values())))
    return accuracy_table("held", rows(count, **columns), readings, DRAWS, baseline)


def part(found: Table, title: str) -> dict:
    return {name: dict(row) for each in found.parts if each.title == title for name, row in each.cells.items()}


def test_scores_become_right_wrong_tied_or_nothing():
    found = [scored(2.0, 1.0), scored(0.5, 1.0), scored(1.0, 1.0), scored(None, 1.0), scored(1.0, None)]
    assert found == [Reading(1.0, 1.0), Reading(0.0, -0.5), Reading(0.5, 0.0), NONE, NONE]


@pytest.mark.parametrize(
    ("orders", "credit"),
    [((1.0, 1.0), 1.0), ((1.0, 0.0), 0.5), ((1.0, None), 0.75), ((0.5, 0.0), 0.25), ((None, None), 0.5)],
)
def test_a_judge_has_the_mean_of_both_orders_and_half_a_point_for_what_cannot_be_read(orders, credit: float):
    assert judged(orders) == Reading(credit)


def test_a_request_that_failed_is_no_verdict():
    assert judged((1.0, None), failed=True) == NONE


def test_what_these_pairs_do_not_tell_from_chance_is_noted():
    found = table({"coin": [RIGHT, WRONG] * 10, "good": [RIGHT] * 18 + [WRONG] * 2, "mute": [NONE] * 20})
    assert near_chance(found) == ["coin is near chance: the interval of its accuracy contains one half"]


def test_ties_count_half_or_are_dropped():
    found = table({"rm": [RIGHT, RIGHT, WRONG, TIE, NONE]}).cells["rm"]
    assert (found["accuracy"].value, found["accuracy"].n) == (2.5 / 4, 4)
    assert (found["accuracy, ties dropped"].value, found["accuracy, ties dropped"].n) == (2 / 3, 3)
    assert (found["ties"].value, found["ties"].n) == (1 / 4, 4)
    expected = wilson(2.5, 4, 0.95)
    assert (found["accuracy"].low, found["accuracy"].high) == (expected.low, expected.high)


def test_macro_and_mean_of_sets_weigh_groups_alike():
    own = [RIGHT, RIGHT, RIGHT, WRONG, WRONG, RIGHT]
    found = table({"rm": own}, category=[*"aaaabb"], split=[*"xyyyyy"])
    cells = found.cells["rm"]
    assert cells["accuracy"].value == pytest.approx(4 / 6)
    assert cells["accuracy, macro"].value == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert cells["accuracy, mean of sets"].value == pytest.approx((1 + 3 / 5) / 2)
    by = part(found, "accuracy by category")["rm"]
    assert {name: (cell.value, cell.n) for name, cell in by.items()} == {"a": (0.75, 4), "b": (0.5, 2)}


def test_the_mean_of_sets_lies_inside_its_interval_and_the_set_with_few_pairs_widens_it():
    many, few = [RIGHT] * 60 + [WRONG] * 40, [RIGHT] * 3 + [WRONG] * 2
    found = table({"rm": many + few}, split=["many"] * 100 + ["few"] * 5).cells["rm"]
    mean, micro = found["accuracy, mean of sets"], found["accuracy"]
    assert mean.value == pytest.approx(0.6) and mean.low < 0.6 < mean.high
    assert mean.high - mean.low > 1.5 * (micro.high - micro.low)


@pytest.mark.parametrize("few", [[RIGHT], [RIGHT, RIGHT], [WRONG, WRONG]])
def test_a_category_of_one_or_two_equal_pairs_varies_too(few):
    """Two pairs that are both right do not show that the category is always right."""
    many = [RIGHT, WRONG] * 40
    cell = table({"rm": many + few}, category=["many"] * 80 + ["few"] * len(few)).cells["rm"]["accuracy, macro"]
    alone = wilson(40, 80)
    assert cell.low <= cell.value <= cell.high and cell.high - cell.low > 1.3 * (alone.high - alone.low)


def test_few_pairs_that_are_read_otherwise_show_no_length_bias():
    lengths = {"chosen": [9] * 100, "rejected": [1] * 100}
    found = length_bias(rows(100, **lengths), [WRONG] * 3 + [RIGHT] * 97, DRAWS)
    assert found.value == pytest.approx(-0.03) and found.low < 0 < found.high


def test_length_bias_is_how_much_more_often_than_people_the_longer_answer_is_preferred():
    lengths = {"chosen": [9, 9, 1, 1, 5], "rejected": [1, 1, 9, 9, 5]}
    always_longer = [RIGHT, RIGHT, WRONG, WRONG, RIGHT]
    found = length_bias(rows(5, **lengths), always_longer, DRAWS)
    assert (found.value, found.n) == (1.0 - 0.5, 4), "equally long answers say nothing"
    assert length_bias(rows(5, **lengths), [RIGHT] * 5, DRAWS).value == 0, "people are the measure"


def test_calibration_error_is_the_distance_between_sureness_and_accuracy():
    margin = math.log(9)  # sigmoid: 0.9
    own = [Reading(1.0, margin), Reading(0.0, -margin), Reading(0.5, 0.0), NONE]
    assert (calibration_error(own).value, calibration_error(own).n) == (pytest.approx(0.4), 2)
    assert calibration_error([Reading(1.0, 2000.0)]).value == 0
    assert calibration_error([RIGHT, WRONG]).n == 0, "a judge that gives no scores is not sure of anything"


def test_mcnemar_counts_the_pairs_that_only_one_of_two_has_right():
    found = table({"a": [RIGHT] * 5 + [WRONG, TIE, NONE], "b": [WRONG] * 5 + [RIGHT, WRONG, RIGHT]}, "a")
    row = part(found, "McNemar's test")["b"]
    assert {name: (cell.value, cell.n) for name, cell in row.items()} == {
        "only it is right": (1, 7),
        "only the baseline is right": (5, 7),
        "p": (pytest.approx(2 * (1 + 6) / 2**6), 7),
    }
    difference = found.differences["b"]["accuracy"]
    assert (difference.value, difference.n) == (pytest.approx((1 - 5 - 0.5) / 7), 7)


def test_pairs_of_one_prompt_are_drawn_together():
    own = [RIGHT, RIGHT, WRONG, WRONG] * 10
    alone = table({"rm": own}).cells["rm"]["accuracy"]
    shared = table({"rm": own}, prompt=[f"p{place // 2}" for place in range(40)]).cells["rm"]["accuracy"]
    assert shared.high - shared.low > 1.2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("own", "value", "n"),
    [
        ([RIGHT], 1.0, 1),
        ([TIE, TIE, TIE], 0.5, 3),
        ([NONE, NONE], None, 0),
        ([RIGHT] * 4, 1.0, 4),
        ([WRONG] * 4, 0.0, 4),
    ],
    ids=["one pair", "all ties", "no verdicts", "all right", "all wrong"],
)
def test_what_is_not_defined_is_nothing_and_never_nan(own: list[Reading], value: float | None, n: int):
    found = table({"a": own, "b": own}, "a", category=["x"] * len(own))
    cell = found.cells["b"]["accuracy"]
    assert (cell.value, cell.n) == (value, n)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert "NaN" not in text and json.loads(text)["columns"][0]["name"] == "accuracy"
    assert found.differences["b"]["accuracy"].value == (None if value is None else 0.0)
    if n:
        assert 0 <= cell.low <= value <= cell.high <= 1 and cell.high - cell.low > 0.3


def test_one_model_alone_is_compared_with_nothing():
    found = table({"a": [RIGHT, WRONG]}, "elsewhere")
    assert (found.baseline, found.differences, part(found, "McNemar's test")) == (None, {}, {})
