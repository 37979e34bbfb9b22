"""The shipped recipe for judges, run as a user runs it: a real server replays verdicts; labels and calibration."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import RECIPES
from stored_verdicts import needs_shared, vicuna_files
from tiny_run import results, togi

RECIPE = RECIPES / "examples" / "judge-labels.yaml"
VERDICTS = RECIPES / "examples" / "judge-labels" / "verdicts.jsonl"
Serve = Callable[..., tuple[str, subprocess.Popen[str]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts the replay judge on the given files; returns its URL and process."""
    running: list[subprocess.Popen[str]] = []

    def start(*files: Path) -> tuple[str, subprocess.Popen[str]]:
        command = [sys.executable, "-m", "togi.judge.replay", *map(str, files), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        found = re.search(r"http://\S+/v1", process.stdout.readline())
        assert found is not None
        return found[0], process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def label(home: Path, url: str, *more: str) -> None:
    there = ("models.judge.serve=null", f"models.judge.url={url}", "models.judge.model=replay")
    words = (*there, "models.base=null", "stages.reward=null", *more)
    ended = togi(home, "run", str(RECIPE), "--threads", "1", *words)
    assert ended.returncode == 0, ended.stderr


def stage(home: Path, kind: str) -> dict:
    (folder,) = (home / "store").glob(f"{kind}-*")
    return json.loads((folder / "summary.json").read_text())


def test_the_recipe_labels_and_calibrates_and_asks_for_no_stored_verdict_again(tmp_path: Path, serve: Serve) -> None:
    url, process = serve(VERDICTS)
    label(tmp_path, url)
    found = stage(tmp_path, "label")
    assert found["counts"] == {"in": 90, "verdicts": 194, "out": 76}
    assert found["drops"] == {"inconsistent": 7, "tie": 5, "unreadable": 2}
    table = {row["metric"]: row["policy"]["mean"] for row in stage(tmp_path, "calibrate")["table"]}
    assert table["agreement"] == pytest.approx(0.889, abs=1e-3) and table["win rate of loose: corrected"] == 0
    first = results(tmp_path)
    process.kill()
    process.wait()
    label(tmp_path, url, "--redo", "judged")
    assert results(tmp_path) == first


@needs_shared
def test_what_gpt_4_said_of_japanese_answers_becomes_pairs(tmp_path: Path, serve: Serve) -> None:
    """480 comparisons with one model, each in both orders. The answers of five models lose more often than not."""
    answers = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "togi.judge.replay", *map(str, vicuna_files()), "--write-answers", str(answers)]
    subprocess.run(command, check=True, capture_output=True)
    url, _ = serve(*vicuna_files())
    more = ("stages.trust=null", "stages.judged.compare=first", "stages.judged.language=ja")
    label(tmp_path, url, f"data.answers.path={answers}", *more)
    found = stage(tmp_path, "label")
    assert 380 < found["counts"]["in"] <= 480 and found["counts"]["out"] > 250
    assert found["counts"]["in"] == found["counts"]["out"] + sum(found["drops"].values())
    assert 0.5 < found["orders_agree"] < 0.95 and 0.4 < found["first_answer_preferred"] < 0.65
