"""The table of an arena: controls, leaks and degenerate inputs, against the closed form."""

import pytest

from togi.core.errors import InputError
from togi.evaluate.arena import Battle, Rows
from togi.evaluate.benchmarks.arena import Played, arena_table, need_battles
from togi.evaluate.benchmarks.table import Cell
from togi.evaluate.markdown import Style
from togi.evaluate.statistics import Bootstrap

BOOTSTRAP = Bootstrap(seed=2**40 + 1, resamples=200)
SHARES = {"1": 0.0, "2": 0.0, "3": 1.0, "4": 0.5}
"""The share of each question that the baseline won."""


def numbers(cell: Cell) -> tuple[float, float, float]:
    """(low, value, high), none of them missing."""
    assert cell.low is not None and cell.value is not None and cell.high is not None
    return cell.low, cell.value, cell.high


def rows(shares=SHARES) -> Rows:
    return Rows(battles=[Battle(model_a="base", model_b="m", share=s, question=q) for q, s in shares.items()])


def styles(long: float) -> dict[str, dict[str, Style]]:
    base = {q: Style(tokens=100.0 + int(q), headers=0, lists=0, bold=0) for q in SHARES}
    own = {q: Style(tokens=long * (100 + 10 * int(q)), headers=0, lists=0, bold=int(q)) for q in SHARES}
    return {"base": base, "m": own}


def table(**changes):
    given = {"rows": rows(), "baseline": "base", "styles": styles(3), **changes}
    return arena_table("arena", Played(**given), list(SHARES), BOOTSTRAP)


def test_the_rate_is_the_closed_form_and_the_values_are_those_of_questions():
    found = table()
    low, value, high = numbers(found.cells["m"]["win rate"])
    assert value == pytest.approx(2.5 / 4) and low < value < high
    assert found.values["m"]["win rate"] == [1.0, 1.0, 0.0, 0.5]
    assert found.cells["m"]["mean tokens"].value == pytest.approx(3 * 125)
    assert [part.title for part in found.parts] == ["games", "intervals as published"]


def test_long_winners_lose_under_the_length_control_and_short_ones_win():
    tables = {long: table(styles=styles(long), length_control=True) for long in (0.2, 3)}
    rates = {long: numbers(found.cells["m"]["win rate, length-controlled"])[1] for long, found in tables.items()}
    assert rates[3] < 2.5 / 4 < rates[0.2]


def test_style_control_has_a_column_of_its_own():
    low, value, high = numbers(table(style_control="length").cells["m"]["win rate, style-controlled"])
    assert 0 < value < 1 and low < high


def test_a_control_that_few_battles_do_not_determine_is_a_dash_that_says_why():
    silent = {model: {q: Style(tokens=0, headers=0, lists=0, bold=0) for q in SHARES} for model in ("base", "m")}
    cell = table(styles=silent, style_control="length").cells["m"]["win rate, style-controlled"]
    assert cell.value is None and "differ in style by the same" in cell.note


def test_leaked_questions_are_taken_out_of_a_rate_beside_the_whole_one():
    cells = table(leaked={"m": ["1", "2"]}).cells["m"]
    assert cells["win rate"].value == pytest.approx(2.5 / 4)
    assert cells["win rate, unleaked"].value == pytest.approx(0.5 / 2)


@pytest.mark.parametrize(("share", "rate"), [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_games_that_all_end_alike_have_a_defined_rate(share: float, rate: float):
    cell = table(rows=rows(dict.fromkeys(SHARES, share))).cells["m"]["win rate"]
    low, value, high = numbers(cell)
    assert value == pytest.approx(rate) and low <= rate <= high


def test_models_without_counted_tokens_have_a_dash():
    silent = {model: {q: Style(tokens=0, headers=0, lists=0, bold=0) for q in SHARES} for model in ("base", "m")}
    assert table(styles=silent).cells["m"]["mean tokens"].value is None


def test_no_battle_is_an_error_that_says_why():
    empty = Rows()
    empty.dropped["no_verdict"] = 8
    with pytest.raises(InputError, match="8 no_verdict"):
        need_battles(empty)
