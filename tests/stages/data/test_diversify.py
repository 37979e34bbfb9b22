"""A budget of diverse records: which are dropped and why, the best of near-duplicates stays, all kinds of records."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_run import togi

from togi.core.codec import read_records, write_records
from togi.core.files import read_json, read_lines
from togi.core.records import Completion, Document, Message, Prompt, Sample
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import diversify_work
from togi.stages.data.diversify import Diversify

BREAD, BREAD_TOO = "How do I bake bread at home without an oven?", "How do I bake a bread at home without an oven?"
SKY, RIVER = "Why is the sky blue at noon and red in the evening?", "Where does the river Volga begin?"


def diversified(folder: Path, records: list[Any], kind: str, **more: Any) -> tuple[list[Any], dict[str, Any], Context]:
    """Returns the chosen records in order, the summary and the context."""
    write_records(folder / "in" / RECORDS_FILE, kind, records)
    made = folder / f"diversify-{len(list(folder.iterdir()))}"
    made.mkdir()
    inputs = {"$in": Resolved(kind, folder=folder / "in")}
    context = Context("few", made, folder, 1, inputs, Control(send=lambda event: None))
    diversify_work.run(Diversify.model_validate({"input": "$in", "kind": kind, **more}), context)
    context.finish()
    return read_records(made / RECORDS_FILE)[1], read_json(made / "summary.json"), context


def documents(*texts: str) -> list[Document]:
    return [Document(id=f"d{i}", text=text) for i, text in enumerate(texts)]


@pytest.mark.parametrize("method", ["k_centre", "facility_location"])
def test_near_duplicates_leave_and_the_rest_is_chosen_to_a_budget(tmp_path, method):
    records = documents(BREAD, SKY, BREAD_TOO, RIVER, SKY)
    chosen, summary, context = diversified(tmp_path, records, "documents", keep=2, method=method)
    assert len(chosen) == 2 and {record.id for record in chosen} < {"d0", "d1", "d3"}
    assert summary["drops"] == {"near_duplicate_ngrams": 2, "over_budget": 1}
    assert [drop.id for drop in context.drops if drop.reason == "near_duplicate_ngrams"] == ["d2", "d4"]
    assert not (context.folder / "alarms.jsonl").exists()


def sample(name: str, question: str, score: float) -> Sample:
    prompt = Prompt(id=f"p{name}", messages=(Message("user", question),))
    return Sample(id=name, prompt=prompt, completion=Completion(text="Yes.", stop="length"), scores={"reward": score})


@pytest.mark.parametrize("method", ["k_centre", "facility_location"])
def test_with_a_score_the_best_of_near_duplicates_stays_and_the_best_of_all_comes_first(tmp_path, method):
    records = [sample("a", BREAD, 0.1), sample("b", SKY, 0.2), sample("c", BREAD_TOO, 0.9), sample("d", RIVER, 0.3)]
    chosen, _, context = diversified(tmp_path, records, "samples", keep=3, by="reward", method=method)
    assert chosen[0].id == "c" and sorted(record.id for record in chosen) == ["b", "c", "d"]
    assert [(drop.id, drop.reason) for drop in context.drops] == [("a", "near_duplicate_ngrams")]
    assert chosen == [next(each for each in records if each.id == record.id) for record in chosen]


def test_embeddings_find_what_ngrams_let_pass(tmp_path):
    records = documents(BREAD, BREAD_TOO, RIVER)
    chosen, summary, context = diversified(tmp_path, records, "documents", keep=3, max_jaccard=1.0, max_cosine=0.8)
    assert [record.id for record in sorted(chosen, key=lambda record: record.id)] == ["d0", "d2"]
    assert summary["drops"] == {"near_duplicate_embedding": 1}
    (alarm,) = read_lines(context.folder / "alarms.jsonl")
    assert alarm["name"] == "under_budget" and "only 2 of 3 records are sufficiently different" in alarm["message"]


@pytest.mark.parametrize("by", [None, "rank"])
@pytest.mark.parametrize("method", ["k_centre", "facility_location"])
def test_records_without_the_part_to_compare_are_dropped_and_resemble_nothing(tmp_path, method, by):
    answers = [None, BREAD, None, SKY, BREAD_TOO, None]
    records = [
        Prompt(id=f"q{n}", messages=(Message("user", "Which?"),), answer=answer, extra={"rank": n})
        for n, answer in enumerate(answers)
    ]
    given: dict[str, Any] = {"part": "answer", "keep": 3, "method": method, "by": by}
    chosen, summary, context = diversified(tmp_path, records, "prompts", **given)
    assert {record.id for record in chosen} == {"q1" if by is None else "q4", "q3"}
    assert summary["drops"] == {"nothing_to_compare": 3, "near_duplicate_ngrams": 1}
    (alarm,) = read_lines(context.folder / "alarms.jsonl")
    assert "only 2 of 3 records are sufficiently different" in alarm["message"]
    chosen, summary, _ = diversified(tmp_path, [records[0], records[2]], "prompts", **given)
    assert (chosen, summary["drops"]) == ([], {"nothing_to_compare": 2})


def test_what_a_method_does_not_read_is_refused():
    with pytest.raises(ValidationError, match="neighbours is only read with method: facility_location, found k_centre"):
        Diversify.model_validate({"input": "$in", "keep": 3, "neighbours": 8})


RECIPE = """\
name: few
data:
  questions: {path: questions.jsonl}
stages:
  few: {type: diversify, input: $questions, keep: 2, method: facility_location}
"""


def test_in_a_recipe_rows_under_data_are_prompts_unless_kind_says_otherwise(tmp_path):
    rows = [json.dumps({"question": text}) for text in (BREAD, SKY, BREAD_TOO, RIVER)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    (tmp_path / "few.yaml").write_text(RECIPE)
    ended = togi(tmp_path / "home", "run", str(tmp_path / "few.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(togi(tmp_path / "home", "show", str(tmp_path / "few.yaml"), "few", "--json").stdout)
    assert len(shown["records"]) == 2 and shown["summary"]["drops"] == {"near_duplicate_ngrams": 1, "over_budget": 1}
