"""Output of `togi show` for a stage, whatever its records contain."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import togi

from togi.cli.show import print_stage, stage_json
from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.files import append_line, write_json
from togi.core.records import Chat, Completion, Document, Figure, Message, Pair, Prompt, Sample, Verdict
from togi.stages.base import RECORDS_FILE

WILD = "a\x1b]0;owned\x07b\x9b2J\u202e"
TURN = Message("user", WILD)
CALL = Message("assistant", "", extra={"tool_calls": [{"name": WILD}], "reasoning_content": WILD})
PROMPT = Prompt(id="p", messages=(TURN,), answer=WILD)
RECORDS = {
    "prompts": [PROMPT, Prompt(id="q", messages=(TURN,), answer="")],
    "chats": [Chat(id="c", messages=(TURN, CALL))],
    "documents": [Document(id="d", text=WILD)],
    "pairs": [Pair(id="r", prompt=(TURN,), chosen=(CALL, Message("tool", "1"), TURN), rejected=(TURN,))],
    "verdicts": [Verdict(id="v", prompt="p", answers=(WILD,), judge="j", text=WILD, score=1.0)],
    "tables": [Figure(id="f", benchmark="b", metric=WILD, subject=WILD, value=1.0, low=0.5, high=2.0)],
    "samples": [Sample(id="s", prompt=PROMPT, completion=Completion(text=WILD, stop="length"), scores={WILD: 1.0})],
}


@pytest.mark.parametrize("kind", RECORDS)
def test_records_of_every_kind_are_shown_and_steer_nothing(tmp_path: Path, capsys: pytest.CaptureFixture, kind: str):
    write_records(tmp_path / RECORDS_FILE, kind, RECORDS[kind])
    write_json(tmp_path / "summary.json", {"counts": {WILD: 1}, WILD: WILD})
    print_stage(tmp_path, RECORDS_FILE, 5)
    text = capsys.readouterr().out
    assert "a\\x1b]0;owned\\x07b\\x9b2J\\u202e" in text
    assert not any(mark in text for mark in "\x1b\x07\x9b\u202e")
    assert json.loads(json.dumps(stage_json(tmp_path, RECORDS_FILE, 5)))["records"][0]["id"] == RECORDS[kind][0].id


def test_both_sides_of_a_pair_are_shown_whole(tmp_path, capsys):
    write_records(tmp_path / RECORDS_FILE, "pairs", RECORDS["pairs"])
    print_stage(tmp_path, RECORDS_FILE, 5)
    lines = capsys.readouterr().out.splitlines()
    sides = [line[:9] for line in lines if line.startswith(("+", "-"))]
    assert sides == ["+ assista", "+ tool: 1", "+ user: a", "- user: a"]
    assert any(line.strip().startswith("(tool_calls: [") for line in lines)


def test_a_table_that_compares_nothing_has_values_with_intervals(tmp_path, capsys):
    interval = {"mean": 0.25, "low": 0.125, "high": 0.5, "level": 0.95, "n": 1200}
    rows = [{"metric": "agreement", "policy": interval, "base": None, "difference": None}]
    write_json(tmp_path / "summary.json", {"table": rows})
    print_stage(tmp_path, RECORDS_FILE, 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["metric", "value", "interval", "n"]
    assert re.search(r"agreement +0\.250 +0\.125 to 0\.500 +1,200", lines[3])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("width", "steps"), [(40, 1), (60, 3), (80, 5)])
def test_a_narrow_terminal_shows_the_last_steps_that_fit_and_says_so(tmp_path, monkeypatch, width, steps):
    for step in range(1, 8):
        append_line(tmp_path / "metrics.jsonl", {"step": step, "reward/all/mean-of-batch": 6.6667e-5})
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout", shown := Terminal())
    print_stage(tmp_path, RECORDS_FILE, 5)
    text = shown.getvalue()
    assert text.count("6.667e-05") == text.count("step ") == steps and "step 7" in text
    assert (f"{steps} of the last 5 steps fit into the terminal; --json shows all" in text) is (steps < 5)


def test_a_verdict_says_what_was_read(tmp_path, capsys):
    made = {"prompt": "p", "answers": ("a", "b"), "judge": "j", "text": "t"}
    outcomes = ("tie", "unreadable", "failed")
    write_records(tmp_path / RECORDS_FILE, "verdicts", [Verdict(id=o, outcome=o, **made) for o in outcomes])
    print_stage(tmp_path, RECORDS_FILE, 5)
    text = capsys.readouterr().out
    assert all(f"  j on a, b: {outcome}\n" in text for outcome in outcomes)
    figures = Verdict(id="v", outcome="winner", winner="a", probability=0.8398881798297699, **made)
    write_records(tmp_path / RECORDS_FILE, "verdicts", [figures])
    print_stage(tmp_path, RECORDS_FILE, 5)
    assert "  j on a, b: winner a, probability 0.8399\n" in capsys.readouterr().out


def test_no_records_and_no_work_yet_are_shown(tmp_path, capsys):
    print_stage(tmp_path, RECORDS_FILE, 5)
    assert capsys.readouterr().out == f"{tmp_path}\n"
    write_records(tmp_path / RECORDS_FILE, "prompts", [])
    print_stage(tmp_path, RECORDS_FILE, 5)
    assert capsys.readouterr().out == f"{tmp_path}\nno records\n"


def test_damaged_records_are_a_bad_file(tmp_path):
    (tmp_path / RECORDS_FILE).parent.mkdir()
    (tmp_path / RECORDS_FILE).write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"records\.parquet"):
        print_stage(tmp_path, RECORDS_FILE, 5)


def test_a_stage_without_a_summary_is_told(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "Why {i}?"}}\n' for i in range(4)))
    recipe, home = tmp_path / "r.yaml", tmp_path / "home"
    recipe.write_text(
        "name: r\ndata: {rows: {path: rows.jsonl}}\n"
        "stages: {some: {type: select, input: $rows, count: 3}, few: {type: select, input: $some, count: 2}}\n"
    )
    assert togi(home, "run", str(recipe), "--threads", "1").returncode == 0
    assert togi(home, "show", str(recipe)).stderr == ""
    shutil.rmtree((home / "runs" / "r" / "rows").resolve())
    (home / "runs" / "r" / "some" / "summary.json").write_text("{")
    shown = togi(home, "show", str(recipe))
    gone, damaged = shown.stderr.splitlines()
    assert shown.returncode == 0 and "few" in shown.stdout and "some" not in shown.stdout
    assert gone.startswith("stage rows has no line: ") and "is gone, although the stage is done" in gone
    assert damaged.startswith("stage some has no line: ") and "summary.json: damaged" in damaged
    assert damaged.endswith(f"redo it with `togi run {recipe} --redo some`")
