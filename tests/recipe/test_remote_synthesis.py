"""Synthesis with a server, as a user runs it: the exact number of records, failures counted, no request sent twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import RECIPES
from stub_server import KEY, Stub, shown_text, stub_server
from tiny_run import results, togi

from togi.core.codec import read_records
from togi.core.files import read_json
from togi.stages.base import RECORDS_FILE

RECIPE = """\
name: remote
models:
  teacher: {url: 'URL', model: large, key_env: STUB_KEY}
data:
  documents: {path: DOCUMENTS, licence: Apache-2.0}
stages:
  dialogues: {type: synthesize, method: grounded, model: $teacher, documents: $documents, count: 20, min_support: 0.5}
  kept: {type: curate, input: $dialogues, method: rules}
  texts: {type: synthesize, method: qa, model: $teacher, documents: $documents, pairs_per_text: 1}
"""


def says(body: dict[str, Any], index: int) -> str:
    """A question about the text, with its last sentence as the answer; for some texts nothing usable."""
    asked = body["messages"][-1]["content"]
    if "Write one question" not in asked or "bakery" in asked.lower():
        return "I cannot."
    text, sentence = shown_text(asked)
    return f"Question: What is said of {text.split(chr(10))[2]} ({body['seed']})?\nAnswer: {sentence}"


@pytest.fixture
def server() -> Iterator[Stub]:
    with stub_server(says) as found:
        yield found


def test_records_come_from_a_server_and_nothing_is_asked_twice(server: Stub, tmp_path: Path) -> None:
    path = tmp_path / "remote.yaml"
    documents = str(RECIPES / "examples" / "documents-en.jsonl")
    path.write_text(RECIPE.replace("URL", server.url).replace("DOCUMENTS", documents))
    server.failing = "Ada Thornbury"
    home = tmp_path / "home"
    first = togi(home, "run", str(path), STUB_KEY=KEY)
    assert first.returncode == 0, first.stderr
    stages = {read_json(each / "settings.json")["method"]: each for each in (home / "store").glob("synthesize-*")}
    chats = read_records(stages["grounded"] / RECORDS_FILE)[1]
    assert len(chats) == 20 and len({chat.id for chat in chats}) == 20
    assert all(json.loads(chat.messages[1].content) for chat in chats)
    drops = read_json(stages["grounded"] / "summary.json")["drops"]
    assert drops.get("failed") == 1 and drops["empty"] == 4 and set(drops) <= {"failed", "empty", "answer_elsewhere"}
    assert len(read_records(stages["qa"] / RECORDS_FILE)[1]) == 19  # one failed, four were unusable
    (kept,) = (home / "store").glob("curate-*")
    assert read_records(kept / RECORDS_FILE)[0] == "chats"
    made, count = results(home), len(server.asked)
    again = togi(home, "run", str(path), "--redo", "dialogues", STUB_KEY=KEY)
    assert again.returncode == 0, again.stderr
    assert results(home) == made
    asked = [text for body in server.asked[count:] if (text := body["messages"][-1]["content"]).startswith("Read")]
    assert asked == []  # the one that failed is sent and refused again, which the stub does not record
