"""Judges and models in evaluations, computed here or on a server, with kill -9 in between."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
  capitals: {path: squad.json}
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
  games:
    type: evaluate
    models: [$base, $other]
    judge: $judge
    bootstrap: 100
    benchmarks: [{type: arena, questions: $questions, max_tokens: 4}]
  grounded:
    type: evaluate
    models: [$judge, $other]
    judge: $other
    bootstrap: 100
    benchmarks: [{type: rag, questions: $capitals, one_step: [$other], max_tokens: 16, shown: 2}]
"""
PAIRS, QUESTIONS, CAPITALS = 24, 40, 20


def says(body: dict[str, Any], index: int) -> str:
    """In pairs, `large` always picks the better answer; `small` picks the first one or gives an unreadable verdict.
    For anything else, both derive the answer from a hash of the request."""
    time.sleep(0.01)
    asked = body["messages"][-1]["content"]
    odd = hashlib.sha256(json.dumps([body["model"], body["messages"]]).encode()).digest()[0]
    if "[[A>>B]]" in asked:
        return ("[[A>B]]", "[[B>>A]]", "[[A=B]]", "Who can say?")[odd % 4]
    if "[[correct]]" in asked:
        return ("[[correct]]", "[[incorrect]]", "Who can say?")[odd % 3]
    if "[[none]]" in asked:
        return ("[[none]]", "[[1]]")[odd % 2]
    first, _ = shown(asked)
    if not first:
        return f'{{"relevant_doc_ids": [{odd % 2}]}}' if "documents" in str(body["messages"]) else f"Number {odd}."
    if body["model"] == "large":
        return "[[A]]" if "good" in first else "[[B]]"
    return "Who can say?" if odd % 6 == 0 else "[[A]]"


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
        "".join(json.dumps({"question": f"What is {n}?"}) + "\n" for n in range(QUESTIONS))
    )
    (folder / "squad.json").write_text(json.dumps({"data": [article(n) for n in range(CAPITALS)]}))
    path = folder / "asked.yaml"
    path.write_text(RECIPE.replace("URL", server.url))
    return path


def article(n: int) -> dict[str, Any]:
    """Returns a text with a question, in the form of SQuAD."""
    asked = {"id": f"q{n}", "question": f"What is the capital of land {n}?", "answers": [{"text": f"City {n}"}]}
    return {"title": f"Land {n}", "paragraphs": [{"context": f"City {n} is its capital.", "qas": [asked]}]}


@dataclass
class Quiet:
    """An undisturbed run: its home, and how often each request was made."""

    home: Path
    asked: Counter[str]


@pytest.fixture(scope="module")
def quiet(recipe: Path, server: Stub) -> Quiet:
    home = recipe.parent / "quiet"
    ended = togi(home, "run", str(recipe), "--threads", "1", STUB_KEY=KEY)
    assert ended.returncode == 0, ended.stderr
    return Quiet(home, names(server.asked))


def tables(home: Path) -> dict[str, Any]:
    found = [json.loads(path.read_text())["benchmarks"] for path in (home / "store").glob("evaluate-*/summary.json")]
    return {table["benchmark"]: table for each in found for table in each}


def test_judges_are_asked_in_both_orders_and_held_against_people(quiet: Quiet):
    found = tables(quiet.home)["reward_accuracy"]
    judge, other = found["cells"]["judge"], found["cells"]["other"]
    assert (other["accuracy"]["value"], other["accuracy"]["n"]) == (1, PAIRS)
    assert 0.4 < judge["accuracy"]["value"] < 0.6, "the first place is no opinion"
    assert found["dropped"]["no_verdict"] > 0 and found["differences"]["other"]["accuracy"]["low"] > 0
    (part,) = [each for each in found["parts"] if each["title"] == "accuracy by category"]
    assert {name: cell["n"] for name, cell in part["cells"]["other"].items()} == {"long": 12, "short": 12}


def test_a_benchmark_of_the_same_type_has_a_name_and_settings_of_its_own(quiet: Quiet):
    found = tables(quiet.home)
    assert set(found) == {"reward_accuracy", "once_more", "answers", "arena", "rag"}
    assert found["once_more"]["manifest"]["common"]["judged"]["subjects"]["retries"] == 0
    assert found["once_more"]["mark"] != found["reward_accuracy"]["mark"]
    assert found["once_more"]["cells"]["other"]["accuracy"]["value"] == 1


def test_show_has_a_table_a_benchmark(recipe: Path, quiet: Quiet):
    text = togi(quiet.home, "show", str(recipe), "accuracy").stdout
    assert max(map(len, text.splitlines())) < 300
    assert re.search(r"^ ?reward_accuracy: 24 rows, 95.% intervals, manifest [0-9a-f]{12}$", text, re.M)
    assert re.search(r"^ ?other +100\.0  86\.2 to 100\.0 \(24\)", text, re.M), text
    assert re.search(r"^ ?minus judge, paired +accuracy, %", text, re.M)
    assert "accuracy by category" in text and re.search(r"^ ?left out: no verdict \d", text, re.M)


def names(asked: list[dict[str, Any]]) -> Counter[str]:
    found = (json.dumps(body, sort_keys=True) for body in asked)
    return Counter(text for text in found if QUESTION.content not in text)


Moment = Callable[[Stub, Path], bool]


def said(text: str, times: int) -> Moment:
    """The moment at which the server has received requests with this text so many times."""
    return lambda server, home: sum(text in str(body["messages"]) for body in server.asked) >= times


def done(stage: str, units: int) -> Moment:
    """The moment at which a stage whose settings contain this text has finished so many units."""
    return lambda server, home: any(text(path).count("\n") >= units for path in journals(home, stage))


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([done('"answers"', 2), said("[[A>>B]]", 30), said("[[correct]]", 12)], id="one-in-each"),
        pytest.param(
            [said("[[A]]", 70), done('"arena"', 1), done('"arena"', 2), said("[[A>>B]]", 90), said("[[none]]", 9)],
            id="others",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_evaluation_that_is_killed_ends_with_the_same_bytes(
    moments: Sequence[Moment], recipe: Path, quiet: Quiet, server: Stub, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("STUB_KEY", KEY)
    server.asked.clear()
    for moment in moments:
        run = start(recipe, tmp_path)
        wait(run, lambda moment=moment: moment(server, tmp_path))
        kill_all(run)
        time.sleep(0.1)  # lets requests in flight arrive
    ended = togi(tmp_path, "run", str(recipe), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == results(quiet.home)
    asked = names(server.asked)
    assert not quiet.asked - asked, "a question was not asked"
    assert (asked - quiet.asked).total() <= 2 * len(moments), "more was asked again than was under way at the kills"


def journals(home: Path, stage: str) -> list[Path]:
    """Returns the journals of the stages whose settings contain this text."""
    found = (home / "store").glob("evaluate-*")
    return [path / "journal.jsonl" for path in found if stage in text(path / "settings.json")]


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait(run: Any, ready: Any) -> None:
    while not ready():
        assert run.poll() is None, f"the run ended before: {run.communicate()[0]}"
        time.sleep(0.001)
