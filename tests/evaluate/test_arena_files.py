"""The layouts of arena-hard: the rules of v0.1 and v2 on stored games, what is dropped, lengths, battles written."""

import json
import math

import pytest
from stored import load
from stored_verdicts import SHARED, needs_shared, write_jsonl

from togi.core.errors import InputError
from togi.evaluate.arena import rank, read_battles
from togi.evaluate.arena_files import (
    length_controlled,
    mean_tokens,
    read_judgments,
    read_lengths,
    read_styles,
    share_of,
    write_battles,
)

GAMES = load("arena_small.json")


def judged(path, games, rules, model="m"):
    """Judgments in the layout of `rules`, read by togi: each pair of labels belongs to one question."""
    if rules == "v0.1":
        rows = [{"question_id": i, "model": model} for i in range(len(games))]
    else:
        rows = [{"uid": f"q{i}", "model": model, "baseline": "base"} for i in range(len(games))]
    rows = [{**row, "judge": "j", "games": [{"score": s} for s in pair]} for row, pair in zip(rows, games, strict=True)]
    return read_judgments(write_jsonl(path / "judged.jsonl", rows), rules, "base" if rules == "v0.1" else None)


def test_the_rules_of_ru_arena_on_stored_games(tmp_path):
    wanted = GAMES["ru_arena_v01"]
    found = judged(tmp_path, GAMES["games"], "v0.1")
    standing = rank(found, rounds=100).standings["m"]
    assert (standing.wins, standing.losses, standing.ties) == (
        wanted["model_wins"],
        wanted["baseline_wins"],
        wanted["ties"],
    )
    assert standing.elo == pytest.approx(wanted["elo"], abs=1e-6)
    assert standing.win_rate == pytest.approx(wanted["elo_winrate"], abs=1e-9)
    assert standing.win_rate == pytest.approx(wanted["winrate_pct"], abs=1e-9)
    assert found.dropped == {"no_verdict": 1, "unknown_label": 1}


def test_the_rules_of_v2_on_stored_games(tmp_path):
    wanted = GAMES["arena_hard_v2"]
    found = judged(tmp_path, GAMES["games"], "v2")
    scores = [1 - battle.share for battle in found.battles]
    assert sorted(scores) == sorted(wanted["scores"]) and len(scores) == wanted["n"]
    assert rank(found, rounds=100).standings["m"].win_rate == pytest.approx(wanted["mean_pct"])
    assert found.dropped == {"no_verdict": 2}  # both games of the question


def test_games_of_the_baseline_against_itself_are_dropped_and_counted(tmp_path):
    found = judged(tmp_path, [["A>B", "A=B"], ["A>B", "A=B"]], "v0.1", model="base")
    assert found.dropped == {"model_against_itself": 4} and not found.battles


def test_v01_judgments_need_a_named_baseline(tmp_path):
    with pytest.raises(InputError, match="set --baseline MODEL"):
        read_judgments(write_jsonl(tmp_path / "j.jsonl", []), "v0.1", None)


def against(path, *baselines):
    """v2 judgments of a model m, 12 against each baseline: it loses all games to the first and wins the others."""
    rows = [
        {"uid": f"{base}-{i}", "model": "m", "baseline": base, "games": [{"score": label} for label in labels]}
        for base, labels in zip(baselines, (("A>B", "B>A"), ("B>A", "A>B")), strict=False)
        for i in range(12)
    ]
    return write_jsonl(path / "judged.jsonl", rows)


@pytest.mark.parametrize(("baseline", "rate"), [("o3-mini", 0.0), ("gemini", 100.0)])
def test_games_count_only_against_the_baseline_of_their_row(tmp_path, baseline, rate):
    found = read_judgments(against(tmp_path, "o3-mini", "gemini"), "v2", baseline)
    assert found.dropped == {"other_baseline": 24} and len(found.battles) == 24
    assert {battle.model_a for battle in found.battles} == {baseline}
    assert rank(found, baseline=baseline, rounds=100).standings["m"].win_rate == rate


def test_several_baselines_are_named_and_one_must_be_chosen(tmp_path):
    path = against(tmp_path, "o3-mini", "gemini")
    told = r"o3-mini \(12 judgments\), gemini \(12 judgments\)"
    with pytest.raises(InputError, match=rf"name 2 baselines: {told}; .* set --baseline to one"):
        read_judgments(path, "v2", None)
    with pytest.raises(InputError, match=rf"--baseline m: no judgment names it as baseline; found {told}"):
        read_judgments(path, "v2", "m")
    assert not read_judgments(against(tmp_path, "o3-mini"), "v2", None).dropped


def test_a_label_that_the_rules_drop_has_no_winner():
    assert [share_of(label, "v0.1") for label in ("A>>B", "B>A", "A=B", "A<B", None)] == [1.0, 0.0, 0.5, 0.5, 0.5]
    assert [share_of(label, "v2") for label in ("A<B", "B<<A", "?")] == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("games", [None, [], [{"score": "A>B"}], [{"score": 3}, {"score": "A>B"}]])
def test_games_that_cannot_be_read_are_named(tmp_path, games):
    path = write_jsonl(tmp_path / "j.jsonl", [{"question_id": 1, "model": "m", "games": games}])
    with pytest.raises(InputError, match=r"j.jsonl:1: games: "):
        read_judgments(path, "v0.1", "base")


def test_written_battles_read_back_to_the_same_leaderboard(tmp_path):
    found = judged(tmp_path, GAMES["games"], "v0.1")
    write_battles(tmp_path / "battles.jsonl", found)
    again = read_battles(tmp_path / "battles.jsonl")
    assert rank(again, rounds=100).standings == rank(found, rounds=100).standings
    first = json.loads((tmp_path / "battles.jsonl").read_text().splitlines()[0])
    assert first == {"question_id": "0", "model_a": "base", "model_b": "m", "winner": "model_a"}


def answers(path, model, lengths):
    rows = [
        {"question_id": i, "model_id": model, "choices": [{"index": 0, "turns": [{"content": "", "token_len": n}]}]}
        for i, n in enumerate(lengths)
    ]
    return write_jsonl(path / f"{model}.jsonl", rows)


def test_won_games_weigh_by_length_and_others_one(tmp_path):
    (tmp_path / "answers").mkdir()
    answers(tmp_path / "answers", "base", [100, 100, 100])
    answers(tmp_path / "answers", "m", [200, 100, 0])
    lengths = read_lengths(tmp_path / "answers")
    found = length_controlled(
        judged(tmp_path, [["B>A", "A=B"], ["A>B", "B>A"], ["B>>A", "A=B"]], "v0.1"), lengths, "base"
    )
    weights = [battle.weight for battle in found.battles]
    assert weights == pytest.approx([2 / (1 + math.e), 1, 1, 1, *[2 / (1 + 1 / math.e)] * 3, 1])
    write_battles(tmp_path / "battles.jsonl", found)  # the weights are kept
    ours, again = (rank(rows, rounds=100).standings["m"] for rows in (found, read_battles(tmp_path / "battles.jsonl")))
    assert again.win_rate == pytest.approx(ours.win_rate)


def test_lengths_that_are_missing_are_named(tmp_path):
    found = judged(tmp_path, [["B>A", "A=B"], ["B>A", "B>A"]], "v0.1")
    base = {"base": {"0": 10.0, "1": 20.0}}
    with pytest.raises(InputError, match="no answers by m; found base"):
        length_controlled(found, base, "base")
    with pytest.raises(InputError, match="by the same number on all questions"):
        length_controlled(found, base | {"m": {"0": 11.0, "1": 21.0}}, "base")
    with pytest.raises(InputError, match="question 1: no answer by m or by base"):
        length_controlled(found, {"base": {"0": 1.0, "2": 2.0}, "m": {"0": 5.0, "2": 9.0}}, "base")


@pytest.mark.parametrize("count", ["NaN", "Infinity", "1e308", "9" * 401, "-5", "true", '"many"', "[3]"])
@pytest.mark.parametrize("read", [read_lengths, read_styles])
def test_token_counts_that_are_no_counts_are_named(tmp_path, count, read):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"uid": 1, "model": "m", "metadata": {"token_len": ' + count + "}}\n")
    with pytest.raises(InputError, match=r"answers.jsonl:1: token_len: found .*; expected a number from 0"):
        read(path)


def test_a_missing_token_count_is_named(tmp_path):
    path = write_jsonl(tmp_path / "answers.jsonl", [{"uid": 1, "model": "m", "metadata": {"token_len": None}}])
    with pytest.raises(InputError, match=r"answers.jsonl:1: no token count"):
        read_lengths(path)


def test_v2_answers_carry_their_tokens_in_metadata_and_a_missing_answer_counts_zero(tmp_path):
    rows = [{"uid": f"q{i}", "model": "m", "metadata": {"token_len": 10}} for i in range(3)]
    rows.append({"uid": "q3", "model": "o", "metadata": {"token_len": 8}})
    assert mean_tokens(read_lengths(write_jsonl(tmp_path / "a.jsonl", rows))) == {"m": 7.5, "o": 2.0}
    with pytest.raises(InputError, match=r"b.jsonl:1: no token count"):
        read_lengths(write_jsonl(tmp_path / "b.jsonl", [{"uid": "q", "model": "m", "metadata": {}}]))
    with pytest.raises(InputError, match=r"no column 'model'; found uid"):
        read_lengths(write_jsonl(tmp_path / "c.jsonl", [{"uid": "q"}]))


@needs_shared
def test_mean_tokens_of_the_baseline_of_ru_arena_are_the_published_220():
    found = mean_tokens(read_lengths(SHARED / "ru_arena" / "gpt-3.5-turbo-0125.jsonl"))
    assert int(found["gpt-3.5-turbo-0125"]) == 220
    assert found["gpt-3.5-turbo-0125"] == pytest.approx(220.828)
