"""Drafts: as many as requested, each a prompt or a drop with a reason, and made once however often a run is killed."""

from pathlib import Path
from typing import Any

import pytest

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.records import Completion, Message, Prompt
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import harvest_work, synthesize_work
from togi.stages.data.synthesize import Synthesize

SEEDS = [f"Why does the number {word} bring luck?" for word in ("seven", "three", "nine", "four", "two", "ten")]
DRAFTS = [
    (" How do birds find their way?", "stop_string"),
    (" Why?", "stop_string"),
    (f" {SEEDS[0]}", "stop_string"),
    (" Почему небо такое синее?", "stop_string"),
    (" What is the largest", "length"),
    (" Question: What is it?", "stop_string"),
    ("  ", "stop_string"),
    (" Where does the wind come from?", "stop_string"),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The few-shot prompts shown to a model that returns the drafts above."""
    shown: list[str] = []

    class Writer:
        def complete(self, texts, params, seeds):
            assert params.n == 4 and len({seed for group in seeds for seed in group}) == 4 * len(texts)
            first = len(shown)
            shown.extend(texts)
            return [
                [
                    Completion(text=DRAFTS[(4 * number + i) % 8][0], stop=DRAFTS[(4 * number + i) % 8][1])
                    for i in range(4)
                ]
                for number in range(first, len(shown))
            ]

    def completer(context, ref, *, batch_rows):
        assert ref == "$base" and batch_rows == 8
        return Writer()

    monkeypatch.setattr(harvest_work, "completer", completer)
    return shown


def context(folder: Path, answer: str | None = None) -> Context:
    seeds = [Prompt(id=f"s{i}", messages=(Message("user", text),), answer=answer) for i, text in enumerate(SEEDS)]
    write_records(folder / "seeds" / RECORDS_FILE, "prompts", seeds)
    (folder / "synthesize-0").mkdir()
    inputs = {"$seeds": Resolved("prompts", folder=folder / "seeds")}
    return Context("drafts", folder / "synthesize-0", folder, 17, inputs, Control(send=lambda event: None))


def settings(**more: Any) -> Synthesize:
    given = {
        "model": "$base",
        "examples": "$seeds",
        "count": 11,
        "samples_per_prompt": 4,
        "batch_prompts": 2,
        "shots": 3,
    }
    return Synthesize.model_validate({**given, **more})


def test_every_draft_is_a_prompt_or_a_drop_with_its_reason(tmp_path, asked):
    made = context(tmp_path)
    synthesize_work.run(settings(), made)
    made.finish()
    _, prompts = read_records(made.folder / RECORDS_FILE)
    birds, wind = (DRAFTS[i][0].strip() for i in (0, 7))
    assert [prompt.text for prompt in prompts] == [birds, wind, birds]
    reasons = {"too_short": 2, "copy_of_seed": 2, "wrong_language": 1, "no_end": 1, "label_inside": 1, "empty": 1}
    summary = read_json(made.folder / "summary.json")
    assert summary["drops"] == reasons and summary["counts"] == {"in": 11, "out": 3}
    assert len({prompt.id for prompt in prompts}) == 3 and len(prompts[0].parents) == len(SEEDS)


def test_a_question_or_an_answer_that_repeats_itself_is_dropped(tmp_path, asked, monkeypatch):
    drafts = [
        " How do birds fly and how do birds fly and how do birds fly?\nAnswer: With wings.",
        " How do birds fly?\nAnswer: They flap their wings, they flap their wings, they flap their wings.",
        " How do birds fly?\nAnswer: They flap their wings.",
        " How do bees fly?\nAnswer: They flap their wings too.",
    ]
    monkeypatch.setattr(f"{__name__}.DRAFTS", [(text, "stop_string") for text in drafts] * 2)
    made = context(tmp_path, answer="It does not bring luck at all.")
    synthesize_work.run(settings(style="question_answer", count=4), made)
    made.finish()
    assert read_json(made.folder / "summary.json")["drops"] == {"repeated_ngrams": 2}
    _, prompts = read_records(made.folder / RECORDS_FILE)
    assert [prompt.answer for prompt in prompts] == ["They flap their wings.", "They flap their wings too."]


def test_an_answer_that_is_a_seeds_is_a_copy(tmp_path, asked, monkeypatch):
    draft = " How do bees fly?\nAnswer: It does not bring luck at all!"
    monkeypatch.setattr(f"{__name__}.DRAFTS", [(draft, "stop_string"), (" How?\nAnswer: So.", "stop_string")] * 4)
    made = context(tmp_path, answer="It does not bring luck at all.")
    synthesize_work.run(settings(style="question_answer", count=2, min_chars=3), made)
    made.finish()
    assert read_json(made.folder / "summary.json")["drops"] == {"copy_of_seed": 1}


def test_the_examples_differ_from_prompt_to_prompt_and_come_before_an_open_question(tmp_path, asked):
    synthesize_work.run(settings(), context(tmp_path))
    assert len(asked) == 3 and len(set(asked)) > 1
    for text in asked:
        *shown, last = text.split("\n\n")
        assert last == "Question:" and len(shown) == 3
        assert all(block.removeprefix("Question: ") in SEEDS for block in shown)


def test_units_that_are_done_are_not_done_again(tmp_path, asked):
    made = context(tmp_path)
    synthesize_work.run(settings(), made)
    before = (made.folder / RECORDS_FILE).read_bytes()
    again = Context("drafts", made.folder, tmp_path, 17, made.inputs, made.control)
    synthesize_work.run(settings(), again)
    assert len(asked) == 3 and (made.folder / RECORDS_FILE).read_bytes() == before


def test_answers_need_examples_with_answers(tmp_path, asked):
    with pytest.raises(InputError, match=r"example s\d has no answer"):
        synthesize_work.run(settings(style="question_answer"), context(tmp_path))
