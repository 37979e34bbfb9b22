"""Output of `togi evaluate`, as JSON and for people."""

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
    assert ends[0] + 2 == ends[1] == ends[2]  # 研ぎ is two characters and four columns wide


def test_an_option_and_a_scale_that_cannot_be_read(tmp_path, capsys):
    path = write_jsonl(tmp_path / "s.jsonl", [{"model": "m", "bench": "a", "i": 0, "score": 3}])
    for word in ("a", "a=", "=2", "a=-1", "a=nan", "a=inf"):
        code, out = told(capsys, "evaluate", "graded", "--scores", path, "--scale", word)
        assert code == 2 and "allowed is BENCH=FACTOR" in out.err
    code, out = told(capsys, "evaluate", "graded", "--scores", path, "--scale", "a=2", "--scale", "a=3")
    assert code == 2 and "found a=2, a=3; give one factor for each benchmark" in out.err
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
        assert code == 2 and "cannot be written" in out.err


def test_a_wrong_file_is_one_error_that_says_where(tmp_path, capsys):
    path = write_jsonl(tmp_path / "x.jsonl", [{"a": 1}])
    code, out = told(capsys, "evaluate", "arena", "--battles", path, "--json")
    assert code == 3
    assert json.loads(out.out)["message"].startswith(f"{path}:1: no column 'model_a'")


def test_controls_leaks_and_published_rows_stand_beside_the_score(tmp_path, capsys):
    path = write_jsonl(tmp_path / "b.jsonl", BATTLES)
    answers = [
        {"uid": str(q), "model": model, "metadata": {"token_len": 5 + (7 * q + len(model)) % 11}, "messages": TURN}
        for q in range(12)
        for model in ("база", "研ぎ", "long-name")
    ]
    command = ["evaluate", "arena", "--battles", path, "--rounds", 100, "--published", "ru_arena_general"]
    command += ["--answers", write_jsonl(tmp_path / "a.jsonl", answers), "--style-control", "length"]
    command += ["--leaked", write_jsonl(tmp_path / "l.jsonl", [{"model": "研ぎ", "question_id": q} for q in (0, 1)])]
    _, out = told(capsys, *command, "--json")
    found = json.loads(out.out)
    model = found["models"]["研ぎ"]
    assert model["uncontrolled"] == pytest.approx(75.0) and list(found["style"]) == ["length"]
    assert (model["leaked"], found["models"]["база"]["leaked"]) == (2, 0)
    assert model["unleaked"] == pytest.approx(72.25, abs=0.01)  # controlled, like the rate beside it
    assert found["published"]["rows"][0]["model"] == "gpt-4-1106-preview"
    _, out = told(capsys, *command, "--level", 0.9, "--resample", "model")
    assert "90 % interval" in out.out and "rows of each pair of models" in out.out
    line = next(line for line in out.out.splitlines() if "gpt-4o-mini (published)" in line)
    assert "83.9" in line and "82.1 to 85.0" in line and "—" in line


TURN = [{"role": "assistant", "content": {"answer": "- x"}}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--style-control", "both"], "--style-control needs the answers"),
        (["--answers", "a", "--style-control", "both", "--length-control"], "both control length"),
        (["--published", "mt_bench_ja"], "no such table of a win rate; allowed are ru_arena_general"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, words, message):
    code, out = told(capsys, "evaluate", "arena", "--battles", write_jsonl(tmp_path / "b.jsonl", BATTLES), *words)
    assert code == 2 and message in out.err


def test_an_own_length_controlled_fit_says_that_it_has_no_anchors(tmp_path, capsys):
    rows = [
        {"model": "m", "i": i, "preference": (i % 5) / 4, "len_baseline": 10, "len_model": 8 + i % 7} for i in range(30)
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    _, out = told(capsys, "evaluate", "alpaca", "--preferences", path, "--fit")
    assert "weights fitted here, without anchors: not comparable with published" in out.out
    code, out = told(capsys, "evaluate", "alpaca", "--preferences", path, "--anchors", path)
    assert code == 2 and "--anchors needs --fit" in out.err
