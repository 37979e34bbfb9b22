"""Judges and models as subjects of an evaluation: what is computed here and what a server is asked; kill -9 between."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judges import shown
from stub_server import KEY, Stub, stub_server
from tiny_run import kill_all, results, start, tiny_model, togi

from togi.client.probe import QUESTION

RECIPE = """\
name: asked
models:
  base: {path: model, template: chatml}
  judge: {url: 'URL', model: small, key_env: STUB_KEY, concurrency: 2}
  other: {url: 'URL', model: large, key_env: STUB_KEY, concurrency: 2}
data:
  pairs: {path: pairs.jsonl}
  questions: {path: questions.jsonl}
stages:
  accuracy:
    type: evaluate
    models: [$judge, $other]
    bootstrap: 100
    benchmarks:
      - {type: reward_accuracy, pairs: $pairs, by: kind}
      - {type: reward_accuracy, name: once_more, pairs: $pairs, retries: 0}
  answers:
    type: evaluate
    models: [$base]
    bootstrap: 100
    benchmarks: [{type: answers, prompts: $questions, samples: 2, max_tokens: 4}]
"""
PAIRS = 24


def says(body: dict[str, Any], index: int) -> str:
    """`large` always sees the better answer; `small` likes the first place, or says nothing that can be read."""
    time.sleep(0.01)
    first, second = shown(body["messages"][-1]["content"])
    if body["model"] == "large":
        return "[[A]]" if "good" in first else "[[B]]"
    odd = hashlib.sha256((first + second).encode()).digest()[0] % 6 == 0
    return "Who can say?" if odd else "[[A]]"


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with stub_server(says) as found:
        yield found


@pytest.fixture(scope="module")
def recipe(server: Stub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    tiny_model(folder / "model")
    kinds = ("long", "short")
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"A good answer {n}.", "rejected": f"Bad {n}.", "kind": kinds[n % 2]}
        for n in range(PAIRS)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "questions.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {n}?"}) + "\n" for n in range(40))
    )
    path = folder / "asked.yaml"
    path.write_text(RECIPE.replace("URL", server.url))
    return path


@pytest.fixture(scope="module")
def quiet(recipe: Path) -> Path:
    """The home of an undisturbed run."""
    home = recipe.parent / "quiet"
    ended = togi(home, "run", str(recipe), "--threads", "1", STUB_KEY=KEY)
    assert ended.returncode == 0, ended.stderr
    return home


def tables(home: Path) -> dict[str, Any]:
    found = [json.loads(path.read_text())["benchmarks"] for path in (home / "store").glob("evaluate-*/summary.json")]
    return {table["benchmark"]: table for each in found for table in each}


def test_judges_are_asked_in_both_orders_and_held_against_people(quiet: Path):
    found = tables(quiet)["reward_accuracy"]
    judge, other = found["cells"]["judge"], found["cells"]["other"]
    assert (other["accuracy"]["value"], other["accuracy"]["n"]) == (1, PAIRS)
    assert 0.4 < judge["accuracy"]["value"] < 0.6, "the first place is no opinion"
    assert found["dropped"]["no_verdict"] > 0 and found["differences"]["other"]["accuracy"]["low"] > 0
    (part,) = [each for each in found["parts"] if each["title"] == "accuracy by category"]
    assert {name: cell["n"] for name, cell in part["cells"]["other"].items()} == {"long": 12, "short": 12}


def test_a_benchmark_of_the_same_type_has_a_name_and_settings_of_its_own(quiet: Path):
    found = tables(quiet)
    assert set(found) == {"reward_accuracy", "once_more", "answers"}
    assert found["once_more"]["manifest"]["common"]["judged"]["subjects"]["retries"] == 0
    assert found["once_more"]["mark"] != found["reward_accuracy"]["mark"]
    assert found["once_more"]["cells"]["other"]["accuracy"]["value"] == 1


def test_show_has_a_table_a_benchmark(recipe: Path, quiet: Path):
    text = togi(quiet, "show", str(recipe), "accuracy").stdout
    assert max(map(len, text.splitlines())) < 300
    assert re.search(r"^ ?reward_accuracy: 24 rows, 95.% intervals, manifest [0-9a-f]{12}$", text, re.M)
    assert re.search(r"^ ?other +100\.0  86\.2 to 100\.0 \(24\)", text, re.M), text
    assert re.search(r"^ ?minus judge, paired +accuracy, %", text, re.M)
    assert "accuracy by category" in text and re.search(r"^ ?left out: no verdict \d", text, re.M)


def names(asked: list[dict[str, Any]]) -> Counter[str]:
    found = (json.dumps(body, sort_keys=True) for body in asked)
    return Counter(text for text in found if QUESTION.content not in text)


def test_an_evaluation_that_is_killed_ends_with_the_same_bytes(recipe: Path, quiet: Path, server: Stub, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    home = recipe.parent / "home"
    server.asked.clear()
    moments = (lambda: len(server.asked) >= 70, lambda: any(text(path).count("\n") >= 2 for path in journals(home)))
    for moment in moments:
        run = start(recipe, home)
        wait(run, moment)
        kill_all(run)
        time.sleep(0.1)  # what is under way arrives
    ended = togi(home, "run", str(recipe), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(home) == results(quiet)
    repeated = [count for count in names(server.asked).values() if count > 2]  # two benchmarks ask the same questions
    assert len(repeated) <= 2, "more was asked again than was under way at the kills"


def journals(home: Path) -> list[Path]:
    """The journals of the stage that computes answers here."""
    found = (home / "store").glob("evaluate-*")
    return [path / "journal.jsonl" for path in found if '"answers"' in text(path / "settings.json")]


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait(run: Any, ready: Any) -> None:
    while not ready():
        assert run.poll() is None, f"the run ended before: {run.communicate()[0]}"
        time.sleep(0.001)
