"""The arena: the closed form on many rows, counts, the baseline, and battles with little information."""

import gzip
import json
import math

import numpy as np
import pytest
from stored_verdicts import write_jsonl

from togi.core.errors import InputError
from togi.evaluate.arena import Battle, Rows, rank, read_battles


def row(one, other, winner, question=1, **more):
    return {"question_id": question, "model_a": one, "model_b": other, "winner": winner, **more}


def ranked(path, rows, **options):
    return rank(read_battles(write_jsonl(path / "battles.jsonl", rows)), **{"rounds": 200, **options})


def drawn(count, models, seed):
    """Rows as arenas store them: the baseline first, some wins three times because they are clear."""
    generator = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        model, question = int(generator.integers(models)), int(generator.integers(500))
        winner = str(generator.choice(["model_a", "model_b", "tie"], p=[0.5 - model * 0.04, 0.3 + model * 0.04, 0.2]))
        times = 3 if winner != "tie" and generator.random() < 0.3 else 1
        rows += [row("base", f"モデル{model}", winner, question)] * times
    return rows


def test_twenty_thousand_rows_equal_the_closed_form(tmp_path):
    rows = [*drawn(20_000, 8, seed=1), *[row("base", "base", "tie")] * 7, row("base", "モデル1", None)]
    path = tmp_path / "battles.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in rows).encode()))
    found = rank(read_battles(path), rounds=100)
    assert found.rows == len(rows)
    assert found.dropped == {"model_against_itself": 7, "no_winner": 1}
    for name in (f"モデル{number}" for number in range(8)):
        winners = [each["winner"] for each in rows if each["model_b"] == name and each["winner"]]
        won, tied, count = winners.count("model_b"), winners.count("tie"), len(winners)
        standing = found.standings[name]
        assert standing.win_rate == pytest.approx(100 * (won + tied / 2) / count, abs=1e-9)
        elo = 1000 + 400 * math.log10((won + tied / 2) / (count - won - tied / 2))
        assert standing.elo == pytest.approx(elo, abs=1e-6)
        assert (standing.n, standing.wins, standing.ties, standing.losses) == (count, won, tied, count - won - tied)
        assert standing.low < standing.win_rate < standing.high
    base = found.standings["base"]
    assert (base.win_rate, base.elo, base.low, base.high) == (50.0, 1000.0, 50.0, 50.0)
    assert next(iter(found.standings)) == "モデル7"


def test_the_order_of_rows_changes_no_rate_and_the_same_seed_gives_the_same_interval(tmp_path):
    rows = drawn(900, 3, seed=2)
    one, again = ranked(tmp_path, rows), ranked(tmp_path, rows)
    turned = ranked(tmp_path, rows[::-1])
    assert one == again
    for name, standing in one.standings.items():
        assert turned.standings[name].win_rate == pytest.approx(standing.win_rate, abs=1e-12)


def test_a_repeated_row_is_a_weight(tmp_path):
    rows = [row("base", "m", "model_b", 1), *[row("base", "m", "model_a", 2)] * 3]
    standing = ranked(tmp_path, rows).standings["m"]
    assert (standing.win_rate, standing.n, standing.questions) == (pytest.approx(25.0), 4, 2)


def test_a_length_weight_counts_twice_its_value(tmp_path):
    rows = [
        row("base", "m", "model_b", 1, answer_len_delta=0.25),
        row("base", "m", "model_a", 2, answer_len_delta=0.5),
        row("base", "m", "tie", 3, answer_len_delta=0.5),
    ]
    assert ranked(tmp_path, rows).standings["m"].win_rate == pytest.approx(100 * (0.5 + 0.5) / 2.5)


def test_games_of_one_question_widen_the_interval(tmp_path):
    generator = np.random.default_rng(3)
    rows = []
    for question in range(100):
        rows += [row("base", "m", "model_b" if generator.random() < 0.4 else "model_a", question)] * 4
    by_question, by_row = (ranked(tmp_path, rows, by=by, rounds=1000).standings["m"] for by in ("question", "row"))
    assert 1.7 < (by_question.high - by_question.low) / (by_row.high - by_row.low) < 2.3


@pytest.mark.parametrize("count", [30, 100, 500])
def test_intervals_by_question_cover(count):
    """The two games of a question mostly agree and the model rarely wins, so the rate depends on few questions."""
    generator = np.random.default_rng(count)
    held, trials = 0, 100
    for _ in range(trials):
        first = generator.random(count) < 0.15
        second = np.where(generator.random(count) < 0.7, first, generator.random(count) < 0.15)
        wins = np.stack([first, second], axis=1).ravel()
        rows = Rows(
            [Battle(model_a="base", model_b="m", share=1.0 - won, question=i // 2) for i, won in enumerate(wins)]
        )
        standing = rank(rows, rounds=200).standings["m"]
        held += standing.low <= 15.0 <= standing.high
    assert held / trials >= 0.93 - 2 * math.sqrt(0.05 * 0.95 / trials)


# --- the baseline -----------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_model_in_every_battle_on_either_side(tmp_path):
    rows = [row("a", "base", "model_a"), row("base", "b", "tie"), row("c", "base", "model_b")]
    assert ranked(tmp_path, rows).baseline == "base"
    assert ranked(tmp_path, rows[1:2]).baseline == "base"  # of two models, model_a


def test_without_such_a_model_the_baseline_must_be_named(tmp_path):
    rows = [row("a", "b", "model_a"), row("b", "c", "model_a"), row("c", "a", "model_a")]
    with pytest.raises(InputError, match="set --baseline to one of a, b, c"):
        ranked(tmp_path, rows)
    with pytest.raises(InputError, match="--baseline d: has no battle"):
        ranked(tmp_path, rows, baseline="d")
    assert ranked(tmp_path, rows, baseline="b").standings["c"].win_rate == pytest.approx(50.0)


# --- battles with little information ----------------------------------------------------------------------------------


def test_a_model_that_won_everything_has_the_exact_bound_and_no_elo(tmp_path):
    rows = [row("base", "m", "model_b", question) for question in range(40)]
    standing = ranked(tmp_path, rows).standings["m"]
    assert (standing.win_rate, standing.high, standing.elo) == (100.0, 100.0, None)
    assert standing.low == pytest.approx(100 * 0.025 ** (1 / 40))


@pytest.mark.parametrize("questions", [1, 40])
def test_ties_alone_are_half_with_a_width(tmp_path, questions):
    found = ranked(tmp_path, [row("base", "m", "tie", question) for question in range(questions)])
    standing = found.standings["m"]
    assert (standing.win_rate, standing.elo) == (50.0, 1000.0)
    assert 0 < standing.low < 50 < standing.high < 100


def steady(name, questions, other="base"):
    """Rows of a model whose questions all had the same result: one win and one tie."""
    return [row(other, name, winner, question) for question in range(questions) for winner in ("model_b", "tie")]


def varied(name, questions, seed=1):
    """Rows of a model against the baseline that won about half of its games."""
    won = np.random.default_rng(seed).choice(["model_a", "model_b", "tie"], 2 * questions)
    return [row("base", name, str(winner), number // 2) for number, winner in enumerate(won)]


@pytest.mark.parametrize("questions", [1, 2, 3, 6, 7])
def test_the_battles_of_another_model_change_no_interval_of_a_model_with_few_questions(tmp_path, questions):
    few = steady("few", questions)
    alone = ranked(tmp_path, few).standings["few"]
    beside = ranked(tmp_path, [*few, *varied("big", 200)]).standings["few"]
    assert beside.low == pytest.approx(alone.low) and beside.high == pytest.approx(alone.high)
    unseen = 1 - 0.025 ** (1 / questions)
    assert (alone.low, alone.high) == pytest.approx((75 * (1 - unseen), 75 + 25 * unseen))


def test_a_model_that_a_resample_did_not_draw_is_left_out_of_it(tmp_path):
    """Two of three questions won: a resample without the model must not count as 50 %."""
    rows = [row("base", "few", winner, number) for number, winner in enumerate(["model_b", "model_b", "tie"])]
    by_row = ranked(tmp_path, [*rows, *varied("big", 200)], by="row").standings["few"]
    assert by_row.low >= 50 and by_row.high == 100
    rows = [row("base", "few", winner, number) for number, winner in enumerate(["model_b"] * 9 + ["tie"])]
    one, other = (ranked(tmp_path, [*rows, *more]).standings["few"] for more in ([], varied("big", 300)))
    assert other.low == pytest.approx(one.low, abs=6) and other.low > 50


def test_a_model_with_few_questions_beside_others_in_a_fit_without_a_common_opponent(tmp_path):
    more = [*varied("big", 200), *steady("few", 7, other="big"), row("big", "third", "tie", 0)]
    found = ranked(tmp_path, more, baseline="base").standings["few"]
    rate, unseen = found.win_rate, 1 - 0.025 ** (1 / 7)
    assert found.low < rate * (1 - unseen) + 1e-6 and found.high > rate + unseen * (100 - rate) - 1e-6


def test_few_battles_with_equal_questions_are_ranked(tmp_path):
    rows = [row("base", "big", winner, number) for number, winner in enumerate(["model_a", "model_b", "tie"])]
    found = ranked(tmp_path, [*rows, *steady("m", 2)]).standings
    assert 0 < found["m"].low < 75 < found["m"].high < 100
    assert found["big"].low < 50 < found["big"].high


def test_rows_without_a_verdict_are_counted_by_reason(tmp_path):
    rows = [row("base", "m", winner) for winner in ("model_a", "tie (bothbad)", None, "", "A>B", 3)]
    found = ranked(tmp_path, rows)
    assert found.dropped == {"no_winner": 2, "unknown_winner": 2}
    assert found.standings["m"].n == 2


@pytest.mark.parametrize("rows", [[row("m", "m", "tie")] * 3, [row("base", "m", None)]])
def test_nothing_left_is_an_error_that_says_why(tmp_path, rows):
    with pytest.raises(InputError, match=r"no battle is left: (3 model_against_itself|1 no_winner)"):
        ranked(tmp_path, rows)


def test_a_model_that_nothing_connects_to_the_baseline_is_null(tmp_path):
    rows = [row("base", "m", "model_a"), row("x", "y", "model_a"), row("y", "x", "tie")]
    found = ranked(tmp_path, rows, baseline="base").to_json()["models"]
    assert (found["x"]["win_rate"], found["x"]["low"], found["x"]["elo"]) == (None, None, None)
    assert list(found) == ["base", "m", "x", "y"] or list(found)[2:] == ["y", "x"]
    assert "NaN" not in json.dumps(found)


def test_rows_without_questions_are_drawn_as_rows(tmp_path):
    rows = [{"model_a": "base", "model_b": "m", "winner": winner} for winner in ("model_a", "model_b", "tie")] * 20
    found = ranked(tmp_path, rows)
    assert found.resampled == "row" and found.standings["m"].questions is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"model_a": "x", "winner": "tie"}', r"battles.jsonl:2: no column 'model_b'; found model_a, winner"),
        ('{"model_a": "x", "model_b": ["y"], "winner": "tie"}', r"battles.jsonl:2: model_b: found \['y'\]"),
        ('{"model_a": "x", "model_b": ', r"battles.jsonl:2: "),
        (
            '{"model_a": "x", "model_b": "y", "winner": "tie", "answer_len_delta": 7}',
            "answer_len_delta: found 7; expected a number from 0 to 1",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, line, message):
    path = tmp_path / "battles.jsonl"
    path.write_text('{"model_a": "x", "model_b": "y", "winner": "tie"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_battles(path)


def test_an_empty_file_and_a_missing_one_are_errors(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="has no rows; a row needs model_a, model_b, winner"):
        read_battles(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no such file"):
        read_battles(tmp_path / "gone.jsonl")
