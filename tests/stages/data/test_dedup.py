"""Of similar records one stays, whatever their kind, and the matches name it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_run import togi

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, RecipeError
from togi.core.files import read_json
from togi.core.records import Chat, Completion, Document, Message, Pair, Prompt, Record, Sample
from togi.recipe import graph
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.base import RECORDS_FILE, output_path
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import dedup_work
from togi.stages.data.dedup import Dedup

BREAD, BREAD_TOO = "How do I bake bread at home without an oven?", "How do I bake a bread at home without an oven?"
SAME, RAIN = "how do I bake bread at home, without an OVEN", "雨の日に子供と家で楽しく遊ぶ方法を教えてください。"


def deduplicated(
    folder: Path, records: list[Any], kind: str = "documents", **more: Any
) -> tuple[list[Record], list[Any], dict[str, Any]]:
    """Returns the records that stay, the match of each dropped one, and the summary."""
    write_records(folder / "in" / RECORDS_FILE, kind, records)
    (folder / "dedup-0").mkdir()
    settings = Dedup.model_validate({"input": "$in", "kind": kind, **more})
    inputs = {"$in": Resolved(kind, folder=folder / "in")}
    made = Context("few", folder / "dedup-0", folder, 1, inputs, Control(send=lambda event: None))
    dedup_work.run(settings, made)
    made.finish()
    matches = read_records(made.folder / output_path("matches", "matches"))[1]
    return read_records(made.folder / RECORDS_FILE)[1], matches, read_json(made.folder / "summary.json")


def documents(*texts: str, **extra: list[Any]) -> list[Document]:
    rows = [{key: values[i] for key, values in extra.items()} for i in range(len(texts))]
    return [Document(id=f"d{i}", text=text, extra=row) for i, (text, row) in enumerate(zip(texts, rows, strict=True))]


@pytest.mark.parametrize(
    ("method", "kept", "reasons"),
    [
        ("exact", ["d0", "d2", "d3"], {"copy": 1}),
        ("minhash", ["d0", "d3"], {"near_copy": 2}),
        ("embeddings", ["d0", "d3"], {"near_copy": 2}),
    ],
)
def test_each_method_keeps_the_first_and_tells_what_the_others_are_like(tmp_path, method, kept, reasons):
    stay, matches, summary = deduplicated(tmp_path, documents(BREAD, SAME, BREAD_TOO, RAIN), method=method)
    assert [record.id for record in stay] == kept
    assert summary["drops"] == reasons and summary["counts"] == {"in": 4, "out": len(kept), "matches": 4 - len(kept)}
    assert [(match.record, match.other) for match in matches] == [("d1", "d0"), ("d2", "d0")][: len(matches)]
    assert matches[0].similarity == pytest.approx(1.0, abs=1e-3) and matches[0].text == SAME
    assert all(match.parents == (match.record, match.other) and match.where == "$in" for match in matches)


@pytest.mark.parametrize("method", ["exact", "minhash", "embeddings"])
def test_the_record_with_the_best_score_stays(tmp_path, method):
    records = documents(BREAD, RAIN, SAME, RAIN, SAME, quality=[1, 5, 3.5, 2, 3.5])
    stay, matches, _ = deduplicated(tmp_path, records, method=method, by="quality")
    assert [record.id for record in stay] == ["d1", "d2"]
    assert [(match.record, match.other) for match in matches] == [("d0", "d2"), ("d3", "d1"), ("d4", "d2")]


def test_a_record_without_the_score_is_an_error_that_says_what_there_is(tmp_path):
    records = documents(BREAD, SAME, quality=[1, None], length=[3, 4])
    with pytest.raises(InputError, match=r"stage few: record d1 has no quality \(by: quality\); .*: length"):
        deduplicated(tmp_path, records, by="quality")


@pytest.mark.parametrize("method", ["exact", "minhash", "embeddings"])
def test_a_record_that_lacks_the_part_resembles_nothing(tmp_path, method):
    answers = [None, "Use a pan with a lid.", None, "use a pan with a lid", None]
    records = [Prompt(id=f"p{i}", messages=(Message("user", BREAD),), answer=text) for i, text in enumerate(answers)]
    stay, matches, _ = deduplicated(tmp_path, records, "prompts", method=method, part="answer")
    assert [record.id for record in stay] == ["p0", "p1", "p2", "p4"]
    assert [(match.record, match.other) for match in matches] == [("p3", "p1")]


@pytest.mark.parametrize("method", ["exact", "minhash", "embeddings"])
def test_no_record_has_the_part(tmp_path, method):
    records = [Prompt(id=f"p{i}", messages=(Message("user", BREAD),)) for i in range(2)]
    assert len(deduplicated(tmp_path, records, "prompts", method=method, part="answer")[0]) == 2


def test_exact_copies_have_the_same_symbols(tmp_path):
    texts = ["What is 3 - 4?", "What is 3 + 4?", "what is 3+4", "😀", "😡"]
    stay, _, _ = deduplicated(tmp_path, documents(*texts), method="exact")
    assert [record.id for record in stay] == ["d0", "d1", "d3", "d4"]


ASK, TELL, SHRUG = Message("user", BREAD), Message("assistant", "Use a pan with a lid."), Message("assistant", "No.")
OTHER = Message("user", RAIN)


@pytest.mark.parametrize(
    ("kind", "records", "part", "kept"),
    [
        (
            "prompts",
            [Prompt(id="a", messages=(ASK,)), Prompt(id="b", messages=(Message("system", "x"), ASK))],
            "whole",
            1,
        ),
        ("prompts", [Prompt(id="a", messages=(ASK,)), Prompt(id="b", messages=(OTHER, TELL, ASK))], "whole", 2),
        ("chats", [Chat(id="a", messages=(ASK, TELL)), Chat(id="b", messages=(ASK, SHRUG))], "question", 1),
        ("chats", [Chat(id="a", messages=(ASK, TELL)), Chat(id="b", messages=(ASK, SHRUG))], "answer", 2),
        ("chats", [Chat(id="a", messages=(ASK, TELL)), Chat(id="b", messages=(OTHER, TELL))], "answer", 1),
        (
            "pairs",
            [
                Pair(id="a", prompt=(ASK,), chosen=(TELL,), rejected=(SHRUG,)),
                Pair(id="b", prompt=(ASK,), chosen=(SHRUG,), rejected=(TELL,)),
            ],
            "question",
            1,
        ),
        (
            "samples",
            [
                Sample(
                    id=name,
                    prompt=Prompt(id="p", messages=(ASK,)),
                    completion=Completion(text=text, stop="terminator"),
                )
                for name, text in (("a", "Use a pan."), ("b", "use a pan"))
            ],
            "answer",
            1,
        ),
    ],
)
def test_all_kinds_of_texts_and_their_parts_can_be_compared(tmp_path, kind, records, part, kept):
    stay, _, _ = deduplicated(tmp_path, records, kind, method="exact", part=part)
    assert stay == records[:kept]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "exact", "threshold": 0.5},
            "threshold is only read with method: minhash or embeddings, found exact",
        ),
        ({"method": "embeddings", "ngram": 3}, "ngram is only read with method: minhash"),
        ({"embedder": "$e5"}, "embedder is only read with method: embeddings"),
    ],
)
def test_what_a_method_does_not_read_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Dedup.model_validate({"input": "$in", **settings})


RECIPE = """\
name: few
data:
  texts: {path: texts.jsonl}
stages:
  once: {type: dedup, input: $texts, kind: documents, method: exact}
  few: {type: dedup, input: $once}
"""


def recipe(folder: Path, text: str = RECIPE) -> Path:
    texts = [BREAD, SAME, BREAD_TOO, RAIN]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "few.yaml").write_text(text)
    return folder / "few.yaml"


def test_a_recipe_tells_what_was_dropped_and_what_it_is_like(tmp_path):
    path = str(recipe(tmp_path))
    ended = togi(tmp_path / "home", "run", path, "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    shown = togi(tmp_path / "home", "show", path, "few.matches").stdout
    assert "of $once (ngrams, 0.8" in shown and BREAD_TOO in shown
    kept = json.loads(togi(tmp_path / "home", "show", path, "few", "--json").stdout)["records"]
    assert [row["text"] for row in kept] == [BREAD, RAIN]
    checked = togi(tmp_path / "home", "check", path)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", kind: documents", "", r"few.yaml:5: stages.once: set `kind` to read \$texts as prompts, chats"),
        (
            "input: $once",
            "input: $once, kind: chats",
            r"few.yaml:6: stages.few: all records must be of one kind, but ",
        ),
        ("input: $once", "input: $none", r"few.yaml:6: stages.few.input: nothing is called '\$none'"),
        ("input: $texts, kind: documents", "input: $few", "these stages wait for each other"),
    ],
)
def test_the_kind_that_a_stage_passes_on_is_known_before_it_runs(tmp_path, old, new, message):
    assert old in RECIPE
    with pytest.raises(RecipeError, match=message):
        graph.build(validate(read_tree(recipe(tmp_path, RECIPE.replace(old, new)))))


def test_a_stage_after_it_sees_the_kind(tmp_path):
    nodes = graph.build(validate(read_tree(recipe(tmp_path)))).nodes
    assert [graph.kinds_of(nodes[name].settings)["main"] for name in ("texts", "once", "few")] == ["documents"] * 3
