"""Questions of several turns and their reference answers are recognised by their columns, whatever the file's name."""

import json
from pathlib import Path
from typing import Any

import pytest
from stored_verdicts import SHARED, needs_shared

from togi.core.errors import InputError
from togi.core.records import Document
from togi.data.importing import DataSpec, load_records
from togi.data.question_files import question_name, reference_answers, turns_of

QUESTION = {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now a shorter one."]}
ANSWER = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["A line.", "Line."]}]}


def read(path: Path, row: dict, kind: str) -> Any:
    path.write_text(json.dumps(row))
    return load_records(DataSpec(path=path), kind)


def test_a_question_is_its_first_turn_and_keeps_the_others(tmp_path):
    (found,) = read(tmp_path / "q.jsonl", QUESTION, "prompts").records
    assert found.text == "Write a line." and turns_of(found) == ("Write a line.", "Now a shorter one.")
    assert question_name(found) == "81" and found.extra["category"] == "writing"


def test_a_question_of_one_turn_is_read_whole(tmp_path):
    row = {"question_id": 5, "cluster": 1, "turns": [{"content": "Why?"}]}
    imported = read(tmp_path / "q.jsonl", row, "prompts")
    assert imported.records[0].text == "Why?" and turns_of(imported.records[0]) == ("Why?",)
    assert imported.aside == ["question_id", "cluster"]


def test_a_row_with_a_question_is_not_read_by_its_turns(tmp_path):
    (found,) = read(tmp_path / "q.jsonl", {"question": "Why?", "turns": 3}, "prompts").records
    assert found.text == "Why?"
    with pytest.raises(InputError, match=f"question {found.id}: column 'turns': found a number, wanted a list"):
        turns_of(found)


@pytest.mark.parametrize("turns", ["text", [], [1], [""], [{"text": "no content"}]])
def test_turns_that_are_no_texts_are_refused_with_their_place(tmp_path, turns):
    with pytest.raises(InputError, match=r"q\.jsonl:1: column 'turns"):
        read(tmp_path / "q.jsonl", {**QUESTION, "turns": turns}, "prompts")


def test_reference_answers_are_found_by_the_question(tmp_path):
    documents = read(tmp_path / "r.jsonl", ANSWER, "documents").records
    assert reference_answers(documents) == {"81": ("A line.", "Line.")}
    with pytest.raises(InputError, match="question 81 has two reference answers"):
        reference_answers(documents * 2)
    with pytest.raises(InputError, match="d is not a reference answer: a row needs question_id and choices"):
        reference_answers([Document(id="d", text="a text")])


@pytest.mark.parametrize("choices", [[], [{"index": 0}], "text", [{"turns": []}]])
def test_choices_without_answers_are_refused(tmp_path, choices):
    with pytest.raises(InputError, match=r"r\.jsonl:1: column 'choices': wanted a list"):
        read(tmp_path / "r.jsonl", {**ANSWER, "choices": choices}, "documents")


@needs_shared
def test_the_public_files():
    en, ja = SHARED / "mt_bench_en" / "mt_bench", SHARED / "mt_bench_ja" / "mt_bench_ja"
    for questions, references, count in (
        (en / "question.jsonl", en / "reference_answer" / "gpt-4.jsonl", 30),
        (ja / "question" / "question_full-v3.jsonl", ja / "reference_answer" / "gpt-4-v1.jsonl", 80),
    ):
        asked: Any = load_records(DataSpec(path=questions), "prompts").records
        answers = reference_answers(load_records(DataSpec(path=references), "documents").records)
        assert len(asked) == 80 and all(len(turns_of(prompt)) == 2 for prompt in asked)
        assert len(answers) == count and all(len(own) == 2 for own in answers.values())
        hard = [p for p in asked if p.extra["category"] in ("math", "reasoning", "coding")]
        assert len(hard) == 30 and all(question_name(prompt) in answers for prompt in hard)
