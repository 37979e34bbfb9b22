"""Upper bounds of what requests read: known texts in bytes, unwritten ones by their limits, others as unknown."""

from typing import Any, ClassVar

import pytest

from togi.core.records import Chat, Completion, Document, Message, Pair, Prompt, Record, Sample
from togi.stages.bounds import (
    REQUEST,
    TURN,
    ask_scores,
    document_part_sizes,
    largest,
    last_turns,
    prompt_size,
    read,
    shown,
    text_size,
    whole,
)
from togi.stages.cost import Cost, Known
from togi.stages.data.label import STAGE as LABEL
from togi.stages.data.label import Label
from togi.stages.data.mix import STAGE as MIX
from togi.stages.data.mix import Mix
from togi.stages.data.respond import STAGE as RESPOND
from togi.stages.data.respond import Respond


def prompt(text: str, *before: Message, answer: str | None = None) -> Prompt:
    return Prompt(id=text[:4], messages=(*before, Message("user", text)), answer=answer)


class Given:
    """Inputs by name."""

    takers: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, **known: Known) -> None:
        self.known = known

    def __getitem__(self, ref: Any) -> Known:
        return self.known[ref.name]

    def lengths(self, refs: Any, model: Known, cost: Cost) -> None:
        return None


@pytest.mark.parametrize(("count", "total"), [(0, 0), (1, 9), (2, 14), (3, 16), (4, 25), (6, 32), (7, 41)])
def test_the_largest_sum_repeats_sizes_evenly(count, total):
    assert largest([5, 9, 2], count) == total


def test_all_texts_of_a_record_are_shown_and_every_turn_costs_something():
    asked, said = Message("user", "Why?"), Message("assistant", "Да.")
    records: list[tuple[Record, int]] = [
        (prompt("Why?", answer="not shown"), 8 + TURN),
        (Chat(id="c", messages=(asked, said)), 8 + 14 + 2 * TURN),
        (Sample(id="s", prompt=prompt("Why?"), completion=Completion(text="Да.", stop="length")), 8 + 14 + 2 * TURN),
        (Pair(id="p", prompt=(asked,), chosen=(said,), rejected=(said,)), 8 + 2 * 14 + 3 * TURN),
        (Document(id="d", text="Да."), 5),
    ]
    assert [whole(record) for record, _ in records] == [size for _, size in records]
    called = Message("assistant", "", extra={"tool_calls": [{"function": {"name": "f"}}]})
    assert whole(Chat(id="c", messages=(called,))) > TURN + len("assistant") + 30
    assert last_turns(Chat(id="c", messages=(asked, said, asked, said))) == 4 + 5


def test_what_is_not_written_yet_counts_with_its_limit_and_what_is_elsewhere_as_expected():
    prompts = [prompt("Why?"), prompt("Why not?")]
    here = Known(records=6, samples=prompts, added=100)
    assert read(here, 6, around=7) == 3 * (8 + 12 + 2 * TURN) + 6 * (100 + 7 + REQUEST)
    assert read(here, 1) == 12 + TURN + 100 + REQUEST
    assert read(Known(records=5, tokens=20.5, added=3), 5) == 103 + 5 * (3 + REQUEST)
    assert read(Known(records=5), 5) is None


def test_parts_of_a_document_are_as_long_as_they_may_be():
    text = Document(id="d", text="a" * 25, extra={"title": "T!"})
    assert document_part_sizes(text, 10, every=True) == [12, 12, 7] and document_part_sizes(text, 10, every=False) == [
        12
    ]
    assert document_part_sizes(Document(id="d", text="日本" * 4), 5, every=True) == [15, 9]
    assert document_part_sizes(Document(id="d", text=""), 5, every=True) == []


def test_comments_and_tags_of_a_prompt_file_are_not_read(tmp_path):
    (tmp_path / "own.j2").write_text(
        "{# for me\nalone #}{% if a %}Yes{%- endif %}{%- set b = ['long'] %}: {{ question }}"
    )
    kept = "Yes{%- set b = ['long'] %}: {{ question }}"
    assert prompt_size(tmp_path / "own.j2", "judge", "graded", "en") == len(kept)
    assert prompt_size(None, "judge", "pairwise", "ru") > prompt_size(None, "judge", "pairwise", "en") > 500
    (tmp_path / "own.jsonl").write_text("{# 4 #}")
    assert prompt_size(tmp_path / "own.jsonl", "judge", "graded", "en") == 7


@pytest.mark.parametrize(("items", "batch", "calls"), [(64, None, 1), (65, None, 2), (200, 100, 4), (150, 100, 3)])
def test_scores_are_asked_for_in_requests_of_64(items, batch, calls):
    cost = Cost()
    ask_scores(cost, "r", items, 10, batch)
    assert (cost.calls, cost.read) == (calls, 10)


def test_requests_add_up_by_model_and_one_unknown_makes_the_sum_unknown():
    cost = Cost()
    cost.ask("a", 2, 10, 4, choices=3)
    cost.ask("a", 1, 5, 1)
    assert (cost.calls, cost.read, cost.asked["a"].written, cost.asked["a"].choices) == (3, 15, 5, 3)
    cost.ask("b", 1, None, 1)
    assert (cost.calls, cost.read, cost.asked["a"].read) == (4, None, 15)


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_single_answer_to_each_prompt_can_be_graded_before_it_is_there():
    given = Respond.model_validate({"prompts": "$p", "models": ["$m"], "max_tokens": 50})
    prompts = [prompt("Why?", answer="Because."), prompt("Why not?")]
    answers = RESPOND.estimate(given, Given(p=Known(records=2, samples=prompts))).outputs["main"]
    grading = {"samples": "$a", "judge": "$j", "method": "graded", "rounds": 2, "temperature": 1.0}
    cost = LABEL.estimate(Label.model_validate(grading), Given(a=answers))
    assert (cost.records, cost.calls) == (2, 4)
    size = prompt_size(None, "judge", "graded", "en")
    assert cost.read == 2 * (8 + 12 + 8 + 2 * TURN + 2 * (50 + size + TURN + REQUEST))
    own = LABEL.estimate(Label.model_validate({**grading, "reference": False}), Given(a=answers))
    assert cost.read - own.read == 2 * text_size("Because.")


def test_a_mixture_is_as_long_as_the_longest_records_of_all_its_sets():
    given = Mix.model_validate(
        {"by": "rows", "inputs": [{"input": f"${name}", "share": 1} for name in ("short", "long")]}
    )
    sets = {"short": Known(records=2, samples=[prompt("a"), prompt("b")])}
    sets["long"] = Known(records=1, samples=[prompt("c" * 90)], added=10)
    mixed = MIX.estimate(given, Given(**sets)).outputs["main"]
    assert shown(mixed, 1) == 94 + TURN + 10 and shown(mixed, 3) == 94 + 2 * 5 + 3 * TURN + 10
    sets["long"] = Known(records=1)
    assert shown(MIX.estimate(given, Given(**sets)).outputs["main"], 1) is None
