"""Recipes that sample, score and learn, run on real weights as a user runs them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import RECIPES
from tiny_run import environment

from togi.core.codec import read_records
from togi.core.records import Pair, Sample
from togi.report.collect import collect
from togi.stages.base import RECORDS_FILE


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of both recipes: they share the reward model and the converted weights."""
    return tmp_path_factory.mktemp("examples")


def run(name: str, home: Path) -> Path:
    """Runs a shipped recipe and returns the folder of the run."""
    command = [sys.executable, "-m", "togi", "run", str(RECIPES / "examples" / f"{name}.yaml")]
    ended = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=3000)
    assert ended.returncode == 0, ended.stderr
    return home / "runs" / name


def records(folder: Path, stage: str) -> list[Any]:
    return read_records(folder / stage / RECORDS_FILE)[1]


def check_pairs(pairs: list[Pair], graded: list[Sample], score: str) -> None:
    """Every pair has the best answer to its prompt as chosen and one of the worst as rejected."""
    by_id = {sample.id: sample for sample in graded}
    assert pairs
    for pair in pairs:
        chosen, rejected = (by_id[name] for name in pair.parents)
        scores: list[Any] = [each.scores[score] for each in graded if each.prompt.id == chosen.prompt.id]
        good, bad = chosen.scores[score] or 0.0, rejected.scores[score] or 0.0
        assert chosen.prompt.id == rejected.prompt.id and good == max(scores)
        assert pair.margin == good - bad > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rejection_sampling_takes_the_best_of_seven_against_the_two_worst(home):
    folder = run("rejection", home)
    answers, graded = records(folder, "answers"), records(folder, "graded")
    stages = {stage.name: stage for stage in collect(folder).stages}
    assert len(answers) + sum(stages["answers"].drops.values()) == 140  # 20 questions, 7 answers each
    assert {each.index for each in answers} == set(range(7))
    assert all(each.completion.stop == "terminator" for each in answers)
    pairs = records(folder, "pairs")
    assert len(pairs) >= 20
    check_pairs(pairs, graded, "reward")
    assert all(stages[name].examples for name in ("answers", "graded", "pairs"))
    page = (folder / "report.html").read_text()
    assert 'id="samples"' in page and 'id="records"' in page and "Apache-2.0" in page


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_second_round_learns_from_what_the_first_ones_policy_says(home):
    folder = run("self-dpo", home)
    for number, model in ((1, "base"), (2, "round_1")):
        graded = records(folder, f"graded_{number}")
        assert {each.model for each in graded} == {model}
        check_pairs(records(folder, f"pairs_{number}"), graded, "quality")
    first, second = ({each.text for each in records(folder, f"answers_{number}")} for number in (1, 2))
    assert len(first & second) < len(first) / 4
    assert 'id="samples"' in (folder / "report.html").read_text()
