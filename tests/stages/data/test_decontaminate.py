"""Records that contain evaluation data are removed, and the matches are reported, also next to the scores."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_run import togi, write_recipe

from togi.core.codec import read_records, write_records
from togi.core.errors import RecipeError
from togi.core.files import read_json
from togi.core.records import Chat, Document, Message, Prompt
from togi.core.settings import refs_of
from togi.recipe import graph
from togi.recipe.pool import PoolShards
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.base import RECORDS_FILE, output_path
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import decontaminate_rows, decontaminate_work, rows
from togi.stages.data.decontaminate import Decontaminate

SHEEP = "A farmer has seventeen sheep and all but nine of them die. How many sheep are left?"
RAIN = "なぜ雨は空から降ってくるのか、小さな子供にもわかるように説明してください。"
HARMLESS = "Write a short letter to your landlord in which you ask for a new kitchen window."


def chat(name: str, question: str, answer: str = "Nine.") -> Chat:
    return Chat(id=name, messages=(Message("user", question), Message("assistant", answer)))


def decontaminated(folder: Path, records: list[Any], kind: str = "chats", shards: Any = None, **more: Any):
    """Returns the records that stay, the matches, the summary and the context."""
    tests = [Prompt(id=f"t{i}", messages=(Message("user", text),)) for i, text in enumerate((SHEEP, RAIN))]
    write_records(folder / "in" / RECORDS_FILE, kind, records)
    write_records(folder / "tests" / RECORDS_FILE, "prompts", tests)
    (folder / "decontaminate-0").mkdir(exist_ok=True)
    settings = Decontaminate.model_validate({"input": "$in", "kind": kind, "against": "$tests", **more})
    inputs = {"$in": Resolved(kind, folder=folder / "in"), "$tests": Resolved("prompts", folder=folder / "tests")}
    made = Context("clean", folder / "decontaminate-0", folder, 1, inputs, Control(send=lambda event: None))
    made.shards = shards or made.shards
    decontaminate_work.run(settings, made)
    made.finish()
    matches = read_records(made.folder / output_path("matches", "matches"))[1]
    return read_records(made.folder / RECORDS_FILE)[1], matches, read_json(made.folder / "summary.json"), made


RECORDS = [
    chat("a", HARMLESS),
    chat("b", f"Think step by step. {SHEEP}"),
    chat("c", "Translate.", f"もちろんです。{RAIN}"),
    chat("d", HARMLESS, SHEEP),
]


def test_records_that_hold_a_question_leave_and_it_is_told_where(tmp_path):
    stay, matches, summary, made = decontaminated(tmp_path, RECORDS)
    assert [record.id for record in stay] == ["a"]
    assert [(match.record, match.other, match.where, match.how) for match in matches] == [
        ("b", "t0", "$tests", "ngrams"),
        ("c", "t1", "$tests", "ngrams"),
        ("d", "t0", "$tests", "ngrams"),
    ]
    assert matches[0].similarity == 1 and matches[0].text.startswith("a farmer has seventeen")
    assert summary["drops"] == {"in_evaluation_set": 3} and summary["records that matched"] == {"$tests": 3}
    assert read_json(made.folder / "held_against.json")[0]["matched"] == 3


def test_part_says_where_a_question_is_looked_for(tmp_path):
    stay, _, _, _ = decontaminated(tmp_path, RECORDS, part="question")
    assert [record.id for record in stay] == ["a", "c", "d"]


def test_shards_are_units_that_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SHARD_ROWS", 3)
    whole, matches, summary, made = decontaminated(tmp_path, RECORDS[1:] + RECORDS)
    assert len(list((made.folder / "units").iterdir())) == 3
    assert [match.record for match in matches] == ["b", "c", "d", "b", "c", "d"] and [r.id for r in whole] == ["a"]
    monkeypatch.setattr(decontaminate_rows, "value_of", lambda settings, shard, more: pytest.fail("done again"))
    assert decontaminated(tmp_path, RECORDS[1:] + RECORDS)[:3] == (whole, matches, summary)


def test_several_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SHARD_ROWS", 3)
    (tmp_path / "pool").mkdir()
    alone = decontaminated(tmp_path, RECORDS[1:] + RECORDS)
    with closing(PoolShards(2)) as pool:
        several = decontaminated(tmp_path / "pool", RECORDS[1:] + RECORDS, shards=pool)
    assert several[:3] == alone[:3] and len(alone[1]) == 6


class Letters:
    """Embeds a text as the counts of its letters."""

    def embed(self, texts):
        counts = np.array(
            [[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=float
        )
        return (counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def test_an_embedder_finds_what_is_said_in_another_order(tmp_path, monkeypatch):
    monkeypatch.setattr(decontaminate_work, "embedder", lambda context, ref: Letters())
    shuffled = "How many sheep are left? All but nine of a farmer has seventeen sheep them and die."
    records = [chat("a", HARMLESS), chat("b", shuffled), chat("c", SHEEP)]
    stay, matches, summary, _ = decontaminated(tmp_path, records, embedder="$e5", max_cosine=0.99)
    assert [record.id for record in stay] == ["a"]
    assert [(match.record, match.how) for match in matches] == [("b", "embedding"), ("c", "ngrams")]
    assert summary["drops"] == {"like_evaluation_set": 1, "in_evaluation_set": 1}


def test_documents_are_searched_too(tmp_path):
    records = [Document(id="x", text=f"{HARMLESS}\n\n{SHEEP}"), Document(id="y", text=HARMLESS)]
    stay, _, _, _ = decontaminated(tmp_path, records, "documents")
    assert stay == records[1:]


# --- in a recipe ------------------------------------------------------------------------------------------------------

RECIPE = """\
name: tiny
seed: 3
models:
  base: {path: model, template: chatml}
data:
  tests: {path: tests.jsonl}
  chats: {path: chats.jsonl}
stages:
  clean: {type: decontaminate, input: $chats, kind: chats}
  policy: {type: train.sft, init: $base, chats: $clean, steps: 1, batch_size: 2}
  scores: {type: evaluate, base: $base, policy: $policy, prompts: $tests, max_tokens: 4, bootstrap: 200}
  benchmarks:
    type: evaluate
    models: [$base, $policy]
    bootstrap: 100
    benchmarks: [{type: answers, prompts: $tests, max_tokens: 4}]
"""


def recipe(folder: Path, text: str = RECIPE) -> Path:
    tests = [SHEEP, RAIN, "Why do cats sleep most of the day, and does it do them any good at all?"]
    (folder / "tests.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in tests))
    rows = [{"question": q, "answer": "Yes."} for q in (HARMLESS, SHEEP, "Why is the sky blue?", "Name a big river.")]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(folder, text)


def test_without_against_all_that_models_are_measured_on_counts_and_the_scores_tell_it(tmp_path):
    path, home = str(recipe(tmp_path)), tmp_path / "home"
    ended = togi(home, "run", path, "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert "of 4 records, matched an evaluation set: 1 in $tests" in ended.stderr
    assert "a farmer has seventeen sheep" in togi(home, "show", path, "clean.matches").stdout
    told = json.loads(togi(home, "show", path, "scores", "--json").stdout)["summary"]
    assert told["decontaminated against these prompts: policy"] == "clean: 1 of 4 records matched and were left out"
    assert "decontaminated against these prompts: base" not in told
    said = "clean: 1 of 4 records matched and were left out"
    (found,) = json.loads(togi(home, "show", path, "benchmarks", "--json").stdout)["summary"]["benchmarks"]
    assert found["decontaminated"] == {"policy": said} and found["leaks"] == {"base": None, "policy": 0}
    assert f"the training data of policy was decontaminated against these questions: {said}" in ended.stderr
    page = (home / "runs" / "tiny" / "report.html").read_text()
    assert f"decontaminated against these questions: policy</b> {said}" in page and page.count(said) == 2


def built(folder: Path, text: str) -> graph.Graph:
    return graph.build(validate(read_tree(recipe(folder, text))))


def test_the_edges_that_follow_from_evaluations_are_edges_of_the_graph(tmp_path):
    node = built(tmp_path, RECIPE).nodes["clean"]
    assert isinstance(node.settings, Decontaminate) and refs_of(node.settings.against) == ["$tests"]
    assert node.parents == ["chats", "tests"]
    named = built(tmp_path, RECIPE.replace("kind: chats}", "kind: chats, against: $tests}")).nodes["clean"]
    assert named.parents == node.parents


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompts: $tests, max", "prompts: $few, max", "these stages wait for each other: "),
        ("  scores:", "  #scores:", "tiny.yaml:9: stages.clean: no stage of the recipe measures models, .* `against`"),
    ],
)
def test_a_circle_and_nothing_to_hold_against_are_errors(tmp_path, old, new, message):
    text = RECIPE.replace(old, new)
    if "#" in new:
        text = text.partition("  benchmarks:")[0]
    if "$few" in new:
        text = text.replace("input: $chats, kind: chats", "input: $tests").replace("chats: $clean", "chats: $chats")
        text += "  few: {type: select, input: $clean}\n"
    with pytest.raises(RecipeError, match=message):
        built(tmp_path, text.replace("input: $tests}", "input: $tests, kind: prompts}"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"against": "$in"}, r"against: \$in is the input itself"),
        ({"against": []}, "against is empty"),
        ({"max_cosine": 0.5}, "max_cosine is only read with an embedder"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Decontaminate.model_validate({"input": "$in", **settings})
