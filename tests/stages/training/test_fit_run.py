"""From raw text to a chat model and its judge, run as a user runs it: what was learnt, kills, and what was saved."""

import json
from pathlib import Path

import pytest
from tiny_run import results, togi
from tiny_texts import write_texts

STAGES = ("begun", "taught", "tuned", "judge", "head")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recipe after one undisturbed run, whose results are in home/."""
    folder = tmp_path_factory.mktemp("taught")
    ended = togi(folder / "home", "run", str(write_texts(folder)), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    return folder


def stage(folder: Path, name: str) -> Path:
    return (folder / "home" / "runs" / "tiny" / name).resolve()


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_learns(taught, name):
    lines = metrics_of(stage(taught, name))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


def test_the_report_shows_the_ledger_and_the_rates(taught):
    summary = json.loads((stage(taught, "begun") / "summary.json").read_text())
    assert summary["ledger"]["raw"]["share"] == pytest.approx(0.6, abs=64 / 2400)
    table = json.loads((stage(taught, "judge") / "summary.json").read_text())["table"]
    assert [row["metric"] for row in table] == [
        "accuracy at learning rate 0.001",
        "accuracy at learning rate 1e-05",
        "accuracy of the control",
    ]
    assert "accuracy at learning rate 0.001" in (taught / "home" / "runs" / "tiny" / "report.html").read_text()


def test_a_wrong_kind_of_data_names_the_stages_that_take_it(taught):
    ended = togi(taught / "home", "check", str(taught / "tiny.yaml"), "stages.taught.chats=$judge")
    assert ended.returncode == 2
    assert "stages.taught.chats: needs chats, but $judge gives scorer" in ended.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    "point",
    [
        "mid_append:15",
        "after_rename:30",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("before_rename:17", "mid_append:70")),
    ],
)
def test_killed_anywhere_a_run_ends_with_the_same_bits(taught, tmp_path, point):
    killed = togi(tmp_path, "run", str(taught / "tiny.yaml"), "--threads", "1", TOGI_CRASH_AT=point)
    assert killed.returncode == 5, killed.stderr
    ended = togi(tmp_path, "run", str(taught / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == results(taught / "home")
    assert not list((tmp_path / "store").rglob(".*.tmp"))
