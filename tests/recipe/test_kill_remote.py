"""kill -9 while a judge is asked and while a server writes data: its answers are kept, and the bytes are the same."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from places import RECIPES
from stub_server import KEY, Stub, shown_text, stub_server
from tiny_run import kill_all, results, start, togi

from togi.client.probe import QUESTION

EXAMPLES = RECIPES / "examples"
CONCURRENCY = 4
RECIPE = """\
name: asked
models:
  judge: {url: 'URL', model: small, key_env: STUB_KEY, concurrency: 4}
  teacher: {url: 'URL', model: large, key_env: STUB_KEY, concurrency: 4}
data:
  answers: {path: ANSWERS}
  documents: {path: DOCUMENTS}
stages:
  judged: {type: label, samples: $answers, judge: $judge, batch_prompts: 16}
  texts: {type: synthesize, method: qa, model: $teacher, documents: $documents, pairs_per_text: 2}
"""


def says(body: dict[str, Any], index: int) -> str:
    """A verdict, or a question with the last sentence of the text in the request; both are functions of the request."""
    time.sleep(0.02)
    asked = body["messages"][-1]["content"]
    if body["model"] == "small":
        byte = hashlib.sha256(asked.encode()).digest()[0]
        return f"I think so: [[{'AABBC'[byte % 5]}]]"
    _, sentence = shown_text(asked)
    return f"Question: What is said in place {body['seed']}?\nAnswer: {sentence}"


@pytest.fixture
def server() -> Iterator[Stub]:
    with stub_server(says) as found:
        yield found


def wait_for(server: Stub, count: int, run: Any) -> None:
    """Waits until the server has had so many requests."""
    while len(server.asked) < count:
        assert run.poll() is None, f"the run ended before: {run.communicate()[0]}"
        time.sleep(0.001)


def names(asked: list[dict[str, Any]]) -> Counter[str]:
    """The requests for answers, without the probes that each process sends again."""
    found = (json.dumps(body, sort_keys=True) for body in asked)
    return Counter(text for text in found if QUESTION.content not in text)


@pytest.mark.slow
def test_label_and_synthesize_end_with_the_same_bytes_however_often_they_are_killed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    path = tmp_path / "asked.yaml"
    places = {"ANSWERS": EXAMPLES / "judge-labels" / "answers.jsonl", "DOCUMENTS": EXAMPLES / "documents-en.jsonl"}
    text = RECIPE.replace("URL", server.url)
    for name, place in places.items():
        text = text.replace(name, str(place))
    path.write_text(text)
    quiet = togi(tmp_path / "quiet", "run", str(path), "--threads", "1")
    assert quiet.returncode == 0, quiet.stderr
    expected = names(server.asked)
    judged, total = sum(body["model"] == "small" for body in server.asked), len(server.asked)
    server.asked.clear()

    moments = [judged // 5, judged // 2, judged + (total - judged) // 3, judged + 2 * (total - judged) // 3]
    for moment in moments:
        run = start(path, tmp_path / "home")
        wait_for(server, moment, run)
        kill_all(run)
        time.sleep(0.1)  # lets requests under way arrive
    ended = togi(tmp_path / "home", "run", str(path), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path / "home") == results(tmp_path / "quiet")
    asked = names(server.asked)
    assert asked.keys() == expected.keys()
    again = sum((asked - expected).values())
    assert again <= CONCURRENCY * len(moments), "more was asked again than was under way at the kills"
