"""`togi evaluate`: what it prints, as JSON and for people."""

import json

import pytest
from stored_verdicts import write_jsonl

from togi.cli import main

BATTLES = [
    {"question_id": number, "model_a": "база", "model_b": model, "winner": winner}
    for number, (model, winner) in enumerate([("研ぎ", "model_b"), ("研ぎ", "tie"), ("long-name", "model_a")] * 4)
]


def told(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main.main([*map(str, words)])
    return ended.value.code, capsys.readouterr()


def test_the_arena_as_json(tmp_path, capsys):
    path = write_jsonl(tmp_path / "b.jsonl", [*BATTLES, {"model_a": "база", "model_b": "база", "winner": "tie"}])
    code, out = told(capsys, "evaluate", "arena", "--battles", path, "--json")
    found = json.loads(out.out)
    assert code == 0
    assert (found["benchmark"], found["rows"], found["dropped"]) == ("arena", 13, {"model_against_itself": 1})
    assert set(found["models"]["研ぎ"]) >= {"n", "win_rate", "low", "high", "elo"}
    assert (found["models"]["база"]["win_rate"], found["models"]["база"]["elo"]) == (50.0, 1000.0)
    assert found["models"]["研ぎ"]["win_rate"] == pytest.approx(75.0)


def test_the_arena_for_people_is_aligned_and_has_a_dash_with_its_reason(tmp_path, capsys):
    _, out = told(capsys, "evaluate", "arena", "--battles", write_jsonl(tmp_path / "b.jsonl", BATTLES))
    lines = out.out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["研ぎ", "база", "long-name"]
    assert "—" in lines[4] and "0.0 to" in lines[4]
    assert "a model that won or lost every battle has no Elo" in out.out
    ends = [line.index(rate) + len(rate) for line, rate in zip(lines[2:5], ("75.0", "50.0", "0.0"), strict=True)]
    assert ends[0] + 2 == ends[1] == ends[2]  # 研ぎ is two letters and four columns


def test_an_option_and_a_scale_that_cannot_be_read(tmp_path, capsys):
    path = write_jsonl(tmp_path / "s.jsonl", [{"model": "m", "bench": "a", "i": 0, "score": 3}])
    for word in ("a", "a=", "=2", "a=-1", "a=nan", "a=inf"):
        code, out = told(capsys, "evaluate", "graded", "--scores", path, "--scale", word)
        assert code == 2 and "allowed is BENCH=FACTOR" in out.err
    code, out = told(capsys, "evaluate", "graded", "--scores", path, "--scale", "a=2", "--json")
    assert code == 0 and json.loads(out.out)["models"]["m"]["benches"]["a"]["mean"] == 6.0


def test_graded_and_alpaca_for_people_show_counts_and_dashes(tmp_path, capsys):
    rows = [{"model": "m", "bench": "a", "i": i, "score": score} for i, score in enumerate((3, 4, None))]
    _, out = told(capsys, "evaluate", "graded", "--scores", write_jsonl(tmp_path / "s.jsonl", rows))
    assert "(2, 1 failed)" in out.out and "3 rows, 1 without a grade" in out.out
    rows = [{"model": "m", "i": i, "preference": value} for i, value in enumerate((0.5, 1.0, None))]
    _, out = told(capsys, "evaluate", "alpaca", "--preferences", write_jsonl(tmp_path / "p.jsonl", rows))
    assert "75.00" in out.out and "—" in out.out


def test_what_cannot_be_written_and_who_judged_itself_are_said(tmp_path, capsys):
    games = [{"question_id": 1, "model": "m", "judge": "m", "games": [{"score": "A>B"}, {"score": None}]}]
    command = ("evaluate", "arena", "--judgments", write_jsonl(tmp_path / "j.jsonl", games), "--baseline", "base")
    _, out = told(capsys, *command)
    assert "m judged 2 games of its own" in out.out and "dropped: 1 row, no_verdict" in out.out
    for option in ("--plot", "--save-battles"):
        code, out = told(capsys, *command, option, tmp_path / "j.jsonl" / "x")
        assert code == 3 and "cannot be written" in out.err


def test_a_wrong_file_is_one_error_that_says_where(tmp_path, capsys):
    path = write_jsonl(tmp_path / "x.jsonl", [{"a": 1}])
    code, out = told(capsys, "evaluate", "arena", "--battles", path, "--json")
    assert code == 3
    assert json.loads(out.out)["message"].startswith(f"{path}:1: no column 'model_a'")
