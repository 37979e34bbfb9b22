"""An evaluation of several models on several benchmarks, run as a user runs it, on random weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from measured import BEGUN
from tiny_run import togi, write_recipe

from togi.api import load
from togi.core.codec import read_records
from togi.core.records import Pair
from togi.judge.prompts import Case, own_prompt
from togi.model.first_token import ModelChooser

RECIPE = (
    BEGUN
    + """\
  accuracy:
    type: evaluate
    models: [$reward, $other]
    bootstrap: 100
    benchmarks:
      - {type: reward_accuracy, pairs: $pairs}
  small:
    type: evaluate
    models: [$base]
    bootstrap: 100
    benchmarks:
      - {type: reward_accuracy, name: small_judge, pairs: $pairs, read: logprobs}
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    found = togi(folder / "home", "run", str(write_recipe(folder, RECIPE)), "--threads", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def tables(folder: Path, benchmark: str) -> dict[str, Any]:
    """Returns what the stage that ran a benchmark hands to the report."""
    for summary in (folder / "home" / "store").glob("evaluate-*/summary.json"):
        for found in json.loads(summary.read_text())["benchmarks"]:
            if found["benchmark"] == benchmark:
                return found
    raise AssertionError(f"no stage ran {benchmark}")


def test_every_model_answers_the_same_questions(run: Path):
    found = tables(run, "answers")
    assert list(found["cells"]) == ["base", "policy"] and found["baseline"] == "base" and found["rows"] == 8
    for cells in found["cells"].values():
        assert cells["length (tokens)"]["n"] == cells["reward"]["n"] == 16
        assert 0 < cells["length (tokens)"]["value"] <= 8
    before, after = (found["cells"][name]["reward"]["value"] for name in ("base", "policy"))
    assert found["differences"]["policy"]["reward"]["value"] == pytest.approx(after - before, abs=1e-9)
    assert found["manifest"]["subjects"]["base"] != found["manifest"]["subjects"]["policy"]


def test_reward_models_are_held_against_labels(run: Path):
    found = tables(run, "reward_accuracy")
    right = {name: credits(run, name) for name in ("reward", "other")}
    for name, cells in found["cells"].items():
        assert cells["accuracy"]["n"] == len(right[name]) == found["rows"] > 0
        assert cells["accuracy"]["value"] == pytest.approx(sum(right[name]) / found["rows"])
    assert found["leaks"] == {"reward": 12, "other": 12}, "4 of 16 pairs test the accuracy of what is trained"


def credits(folder: Path, subject: str) -> list[float]:
    return [row.value for row in items(folder) if (row.metric, row.subject) == ("accuracy", subject)]


def test_a_small_judge_is_read_by_its_log_probabilities(run: Path):
    """The chance of A with people's choice first, minus the chance with it second: above 0 is right."""
    pairs = read_records(next((run / "home" / "store").glob("contrast-*/output/records.parquet")))[1]
    model, prompt = load(run / "model", template="chatml"), own_prompt("pairwise", "en")
    judge = ModelChooser(model.net, model.tokenizer, model.template)

    def chance_of_a(pair: Any, first: str, second: str) -> float:
        case = Case(messages=pair.prompt, answers=(first, second), explain=False)
        (margin,) = judge.margins([prompt.messages(case)], "A", "B")
        return 1 / (1 + math.exp(-margin))

    sides = [(one, one.chosen[-1].content, one.rejected[-1].content) for one in pairs if isinstance(one, Pair)]
    right = [float(chance_of_a(pair, good, bad) > chance_of_a(pair, bad, good)) for pair, good, bad in sides]
    found = tables(run, "small_judge")
    accuracy = found["cells"]["base"]["accuracy"]
    assert accuracy["n"] == found["rows"] == len(right) and accuracy["value"] == sum(right) / len(right)
    near = accuracy["low"] <= 0.5 <= accuracy["high"]
    assert any("base is near chance" in note for note in found["notes"]) == near


def items(folder: Path) -> list[Any]:
    """Returns the numbers of single questions, of all stages."""
    files = (folder / "home" / "store").glob("evaluate-*/output/items.parquet")
    return [record for path in files for record in read_records(path)[1]]


def test_numbers_of_single_questions_are_records(run: Path):
    lengths = [row for row in items(run) if (row.metric, row.subject) == ("length (tokens)", "policy")]
    assert len(lengths) == 16 and len({row.parents[-1] for row in lengths}) == 8
    mean = tables(run, "answers")["cells"]["policy"]["length (tokens)"]["value"]
    assert sum(row.value for row in lengths) / 16 == pytest.approx(mean)


def test_the_report_has_a_table_a_benchmark(run: Path):
    page = next((run / "home").rglob("report.html")).read_text()
    assert 'id="benchmarks"' in page and "<h3>reward_accuracy" in page and "<h3>answers" in page


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("models: [$base, $policy]", "models: [$base, $reward]", "measures a language model"),
        ("models: [$base, $policy]", "base: $base", "not used with benchmarks"),
        ("type: answers,", "type: answer,", "did you mean 'answers'"),
        ("models: [$base, $policy]", "models: [$base, $base]", "appears twice"),
    ],
)
def test_what_does_not_fit_is_said_before_work_begins(tmp_path: Path, was: str, now: str, said: str):
    assert was in RECIPE
    found = togi(tmp_path / "home", "check", str(write_recipe(tmp_path, RECIPE.replace(was, now))))
    assert found.returncode == 2 and said in " ".join(found.stderr.split()), found.stderr
