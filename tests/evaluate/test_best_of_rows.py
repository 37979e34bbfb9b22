"""Rows of one prompt with right and wrong answers: best-of-k accuracy, and the score of the subset Ties."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from togi.evaluate.benchmarks.best_of import Question, Ranked, Ties, best_of, ties_cell, ties_of, with_ties
from togi.evaluate.benchmarks.reward_accuracy import Labelled, Reading, accuracy_table, near_chance
from togi.evaluate.benchmarks.table import Table
from togi.evaluate.statistics import Bootstrap, mean_of_shares

DRAWS = Bootstrap(seed=1, resamples=200)
RIGHT, WRONG = Reading(1.0), Reading(0.0)


def rows(count: int, categories: Sequence[str] = ()) -> list[Labelled]:
    own = categories or [""] * count
    return [Labelled(id=f"r{place}", prompt=f"p{place}", category=own[place]) for place in range(count)]


def test_of_several_answers_the_right_one_must_have_the_highest_score():
    given = [Ranked([3.0], [1, 2]), Ranked([2.0], [1, 2]), Ranked([1.0], [1, 1]), Ranked([2.0], [3, 1]), None]
    found = [best_of(one) for one in given]
    assert [one.credit for one in found] == [1.0, 1 / 2, 1 / 3, 0.0, None]
    cells = accuracy_table("best", rows(5), {"rm": found}, DRAWS, "").cells["rm"]
    assert (cells["accuracy"].value, cells["accuracy"].n) == (pytest.approx((1 + 1 / 2 + 1 / 3) / 4), 4)
    assert (cells["ties"].value, cells["accuracy, ties dropped"].value) == (0.5, 0.5)


def test_chance_is_that_of_the_number_of_answers():
    sure = accuracy_table("best", rows(40), {"rm": [RIGHT] * 20 + [WRONG] * 20}, DRAWS, "")
    assert near_chance(sure) and near_chance(sure, 0.25) == []
    poor = accuracy_table("best", rows(40), {"rm": [RIGHT] * 10 + [WRONG] * 30}, DRAWS, "")
    assert near_chance(poor, 0.25) == ["rm is near chance: the interval of its accuracy contains 25.0%"]


# --- the subset Ties --------------------------------------------------------------------------------------------------


def made_up(seed: int, count: int, step: float = 0.0) -> list[Question]:
    """Questions with one right answer and three wrong ones, and with several of both; scores in steps are often the
    same."""
    generator = np.random.default_rng(seed)

    def scores(size: int, shift: float) -> list[float]:
        drawn = generator.normal(shift, 1.0, size)
        return (np.round(drawn / step) * step if step else drawn).tolist()

    return [
        Question(
            Ranked(scores(1, 2.0), scores(3, 0.0)),
            Ranked(scores(int(generator.integers(2, 6)), 2.5), scores(int(generator.integers(1, 6)), 0.0)),
        )
        for _ in range(count)
    ]


def published(questions: Sequence[Question]) -> float:
    """The score of the paper's text and of allenai/reward-bench, written down once more question by question: 60 % for
    right answers above wrong ones, 40 % for gaps between right and wrong answers that exceed those between right
    ones, and a hundredth for how far they do."""
    total = {"ref": 0.0, "tied": 0.0, "own": 0.0, "both": 0.0, "far": 0.0}
    for each in questions:
        (only,) = each.ref.right
        ranked = sorted(each.tied.right)
        best_wrong = max(each.tied.wrong)
        total["ref"] += all(only > other for other in each.ref.wrong)
        total["tied"] += all(mine > other for mine in ranked for other in each.tied.wrong)
        between, above, above_ref = ranked[-1] - ranked[0], ranked[0] - best_wrong, only - max(each.ref.wrong)
        total["own"] += above > between
        total["both"] += above > between and above_ref > between
        least = min(above, above_ref)
        if between:
            total["far"] += math.tanh(least / between - 1)
        else:
            total["far"] += (least > 0) - (least < 0)
    share = {name: value / len(questions) for name, value in total.items()}
    return 0.3 * (share["tied"] + share["ref"]) + 0.2 * (share["own"] + share["both"]) + 0.01 * share["far"]


@pytest.mark.parametrize("step", [0.0, 1.0], ids=["any scores", "grades that are often the same"])
@pytest.mark.parametrize("count", [1, 7, 51])
def test_the_ties_score_is_the_published_one(count: int, step: float):
    questions = made_up(count, count, step)
    values = ties_of(questions)
    assert values.mean() == pytest.approx(published(questions), abs=1e-12)
    alone = [published([question]) for question in questions]
    assert values == pytest.approx(alone, abs=1e-12), "each question has its own part of the score"


@pytest.mark.parametrize(
    ("ref", "tied", "score"),
    [
        (Ranked([5.0], [1.0]), Ranked([5.0, 5.0], [1.0, 0.0]), 1.01),
        (Ranked([5.0], [1.0]), Ranked([5.0, 4.0], [1.0]), 1 + 0.01 * math.tanh(2)),
        (Ranked([5.0], [1.0]), Ranked([9.0, 4.0], [1.0]), 0.6 + 0.01 * math.tanh(3 / 5 - 1)),
        (Ranked([2.0], [1.5]), Ranked([5.0, 4.0], [1.0]), 0.8 + 0.01 * math.tanh(0.5 - 1)),
        (Ranked([1.0], [5.0]), Ranked([5.0, 5.0], [5.0]), -0.01),
        (Ranked([5.0], [5.0]), Ranked([5.0, 5.0], [5.0]), 0.0),
    ],
    ids=["all", "clear", "wide", "narrow ref", "wrong", "all the same"],
)
def test_the_ties_score_of_one_question_by_hand(ref: Ranked, tied: Ranked, score: float):
    assert ties_of([Question(ref, tied)]).tolist() == pytest.approx([score])


def test_a_question_without_one_of_its_rows_counts_in_the_terms_that_it_has():
    questions = made_up(3, 9)
    half = [*questions, Question(Ranked([1.0], [2.0]), None), Question(None, None)]
    values = ties_of(half)
    assert np.isnan(values).tolist() == [False] * 10 + [True]
    refs = np.mean([question.ref.gap > 0 for question in questions])
    assert np.nanmean(values) == pytest.approx(published(questions) + 0.3 * (refs * 9 / 10 - refs))
    assert (
        np.isnan(ties_of([Question(Ranked([1.0], [0.0]), None)])).all() and ties_cell(np.array([np.nan]), 0.95).n == 0
    )


@pytest.mark.parametrize("ability", [-1.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("count", [15, 51])
def test_intervals_of_the_ties_score_cover(ability: float, count: int):
    """With a strong model most questions have the whole score: resampling would give hardly any width."""
    generator = np.random.default_rng(count)

    def values(size: int) -> np.ndarray:
        able, spread = generator.normal(ability, 1.0, size), generator.gamma(2.0, 0.5, size)
        tied, ref = able + generator.normal(0, 0.7, size), able + generator.normal(0.5, 0.7, size)
        least = np.minimum(tied, ref)
        right = 0.3 * (tied > 0) + 0.3 * (ref > 0) + 0.2 * (tied > spread) + 0.2 * (least > spread)
        return right + 0.01 * np.tanh(least / spread - 1)

    truth = values(1_000_000).mean()
    found = [ties_cell(values(count), 0.95) for _ in range(2000)]
    assert np.mean([cell.low <= truth <= cell.high for cell in found]) >= 0.93
    assert all(-0.01 <= cell.low <= cell.value <= cell.high <= 1.01 and cell.low < cell.high for cell in found)


def tied_table(baseline: str = "") -> tuple[Table, dict[str, list[Question]]]:
    categories = ["Math"] * 20 + ["Focus"] * 10
    own = rows(30, categories)
    readings = {
        "a": [RIGHT] * 15 + [WRONG] * 5 + [RIGHT] * 9 + [WRONG],
        "b": [RIGHT] * 10 + [WRONG] * 10 + [RIGHT] * 5 + [WRONG] * 5,
    }
    questions = {"a": made_up(1, 12), "b": made_up(2, 12)}
    ties = Ties(
        names=[f"t{place}" for place in range(12)],
        prompts=[f"q{place}" for place in range(12)],
        category="Ties",
        questions=questions,
    )
    plain = accuracy_table("bench", own, readings, DRAWS, baseline)
    return with_ties(plain, ties, own, readings, DRAWS), questions


def test_the_table_has_the_score_and_the_mean_over_all_subsets():
    table, questions = tied_table("a")
    score, cells = published(questions["a"]), table.cells["a"]
    assert (table.rows, cells["accuracy"].n, cells["Ties score"].n) == (42, 30, 12)
    assert cells["Ties score"].value == pytest.approx(score)
    assert cells["accuracy, macro"].value == pytest.approx((0.75 + 0.9 + score) / 3)
    assert cells["accuracy, macro"].low < cells["accuracy, macro"].value < cells["accuracy, macro"].high
    names = [column.name for column in table.columns]
    assert names.index("accuracy, macro") < names.index("Ties score")
    parts = {part.title: part.cells["a"] for part in table.parts if "a" in part.cells}
    assert list(parts["accuracy by category"]) == ["Math", "Focus", "Ties"]
    assert parts["accuracy by category"]["Ties"].value == pytest.approx(score)
    terms = [cell.value for cell in parts["Ties score, its parts"].values()]
    assert np.dot(terms, [0.3, 0.3, 0.2, 0.2, 0.01]) == pytest.approx(score)
    difference = table.differences["b"]["Ties score"]
    assert difference.value == pytest.approx(published(questions["b"]) - score) and difference.n == 12


def test_questions_of_ties_are_compared_one_by_one():
    table, questions = tied_table()
    assert len(table.items) == len(table.owners) == 42 and table.items[30:] == [f"t{place}" for place in range(12)]
    for name in ("a", "b"):
        assert all(len(column) == 42 for column in table.values[name].values())
        own = table.values[name]["Ties score"]
        assert own[:30] == [None] * 30 and np.mean(own[30:]) == pytest.approx(published(questions[name]))
    json.dumps(table.to_json(), allow_nan=False)
    assert table.item_figures() and table.differences == {}


def test_the_interval_of_the_mean_over_subsets_combines_both():
    """Without the score it is that of the categories; a score that varies more widens it."""
    table, _ = tied_table()
    cells = table.cells["b"]
    shares = mean_of_shares([[1.0] * 10 + [0.0] * 10, [1.0] * 5 + [0.0] * 5], [list(range(20)), list(range(10))])
    macro, score = cells["accuracy, macro"], cells["Ties score"]
    below = ((2 / 3 * (shares.mean - shares.low)) ** 2 + ((score.value - score.low) / 3) ** 2) ** 0.5
    assert macro.low == pytest.approx(macro.value - below) and macro.n == 42


def test_ties_alone_have_a_table_too():
    ties = Ties(names=["t"], prompts=["q"], category="Ties", questions={"a": made_up(1, 1)})
    found = with_ties(accuracy_table("bench", [], {"a": []}, DRAWS, ""), ties, [], {"a": []}, DRAWS)
    assert [column.name for column in found.columns] == ["accuracy", "Ties score"]
    assert found.cells["a"]["accuracy"].value is None and found.cells["a"]["Ties score"].n == 1
    json.dumps(found.to_json(), allow_nan=False)
