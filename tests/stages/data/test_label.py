"""Verdicts become pairs or grades; unreadable ones, and those that differ with the order, are dropped with a reason."""

import math
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from judges import SpokenJudge, between, sample, shown
from pydantic import ValidationError
from stored_verdicts import needs_shared, shaberi_rows

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, StageError
from togi.core.files import read_lines, write_json
from togi.core.records import Provenance
from togi.core.sources import ModelSource
from togi.judge.replay import Verdicts
from togi.stages import judging_work
from togi.stages.base import RECORDS_FILE, output_path
from togi.stages.context import Context, Control, Resolved
from togi.stages.cost import Known
from togi.stages.data import label_work
from togi.stages.data.label import STAGE, Label, estimate
from togi.stages.kinship import Kin

ANSWERS = [
    sample("q1a", "q1", "short", "small"),
    sample("q1b", "q1", "a longer answer", "large"),
    sample("q1c", "q1", "the longest answer of all", "judge"),
    sample("q2a", "q2", "same", "small"),
    sample("q2b", "q2", "Same!", "large"),
    sample("q3a", "q3", "alone", "small"),
    sample("q4a", "q4", "  ", "small"),
    sample("q4b", "q4", "not empty", "large"),
]


def longer(text: str, index: int) -> str:
    one, other = map(len, shown(text))
    return "[[C]]" if one == other else "[[A]]" if one > other else "[[B]]"


@pytest.fixture
def label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the stage on answers with a judge; returns its context, pairs or samples, verdicts and alarms."""

    numbers = count()

    def run(judge, answers=ANSWERS, go_on=False, **settings):
        write_records(tmp_path / "answers" / RECORDS_FILE, "samples", answers)
        folder = tmp_path / ("0" if go_on else str(next(numbers))) / "label-0"
        folder.mkdir(parents=True, exist_ok=True)
        source = ModelSource(kind="endpoint", name="big-judge")
        inputs = {"$answers": Resolved("x", folder=tmp_path / "answers"), "$judge": Resolved("model", source=source)}
        alarms: list[str] = []
        control = Control(send=lambda event: alarms.append(event["name"]) if event["event"] == "alarm" else None)
        context = Context("judged", folder, tmp_path, 5, inputs, control, reasons=STAGE.reasons)
        monkeypatch.setattr(judging_work, "generator", lambda context, ref, batch_rows: judge)
        monkeypatch.setattr(label_work, "chooser", lambda context, ref: judge)
        given = Label.model_validate({"samples": "$answers", "judge": "$judge", **settings})
        label_work.run(given, context)
        main = STAGE.outputs(given)["main"]
        records = read_records(context.folder / output_path(main))[1]
        verdicts = read_records(context.folder / output_path("verdicts", "verdicts"))[1]
        return context, records, verdicts, alarms

    return run


def test_answers_that_differ_in_symbols_are_compared(label):
    answers = [sample("q1a", "q1", "x < 5", "small"), sample("q1b", "q1", "x > 55", "large")]
    _, pairs, _, _ = label(SpokenJudge(longer), [*answers, sample("q1c", "q1", "😀", "judge")])
    assert len(pairs) == 3


def test_every_two_answers_are_compared_in_both_orders(label):
    judge = SpokenJudge(longer)
    context, pairs, verdicts, alarms = label(judge)
    assert [(pair.chosen[0].content, pair.rejected[0].content) for pair in pairs] == [
        ("a longer answer", "short"),
        ("the longest answer of all", "short"),
        ("the longest answer of all", "a longer answer"),
    ]
    assert pairs[0].parents == ("q1b", "q1a") and pairs[0].margin is None
    assert pairs[0].extra == {"preference": 1.0, "chosen_model": "large", "rejected_model": "small"}
    assert [(v.answers, v.winner, v.order) for v in verdicts[:2]] == [
        (("q1a", "q1b"), "q1b", 0),
        (("q1b", "q1a"), "q1b", 1),
    ]
    assert verdicts[0].judge == "judge" and verdicts[0].text == "[[B]]" and verdicts[0].prompt == "p-q1"
    assert len({v.id for v in verdicts}) == len(verdicts) == 6
    drops = {drop.reason: drop.id for drop in context.drops}
    assert drops == {"same_text": "q2a", "empty_answer": "q4a", "alone": "q4b"}
    assert [d.id for d in context.drops if d.reason == "alone"] == ["q3a", "q4b"]
    assert context.counts["in"] == context.counts["out"] + len(context.drops)
    assert context.summary["orders_agree"] == 1.0 and context.summary["first_answer_preferred"] == 0.5
    first = context.summary["examples"][0]
    assert first["question"] == "q1" and [said["who"] for said in first["said"]] == [
        "A: small",
        "B: large",
        "judge (winner)",
    ]
    assert [said["text"] for said in first["said"]] == ["short", "a longer answer", "[[B]]"]
    assert alarms == ["judges_itself"] and context.summary["answers_of_the_judge"] == 1


def test_a_judge_that_answered_under_another_name_is_told_too(label):
    big = Provenance(dataset="big-judge", kind="model")
    mine = [replace(answer, model=f"m{i}", inherited=(big,)) for i, answer in enumerate(ANSWERS[:2])]
    context, _, _, alarms = label(SpokenJudge(longer), [mine[0], ANSWERS[1]])
    assert alarms == ["judges_itself"] and context.summary["answers_of_the_judge"] == 1
    asked = [replace(each, prompt=replace(each.prompt, inherited=(big,))) for each in mine]
    assert label(SpokenJudge(longer), asked)[3] == []  # the judge wrote only the question


def test_answers_of_the_judges_family_are_told(label, tmp_path):
    """The stage that answered says what its models are, however they are called."""
    line, me = {"sft-1": "small", "big-judge": "big-judge"}, {"big-judge": "big-judge"}
    known = {"small": Kin(line).to_json(), "large": Kin(me).to_json()}
    write_json(tmp_path / "answers" / "writers.json", known)
    context, _, _, alarms = label(SpokenJudge(longer), ANSWERS[:2])
    assert alarms == ["judges_itself", "judges_its_family"]
    assert context.summary["answers_of_the_judge"] == context.summary["answers_of_its_family"] == 1
    told = [each["message"] for each in read_lines(context.folder / "alarms.jsonl")]
    assert told[1].startswith("1 of 2 answers that $judge judges are of its family (small was trained from the judge)")


def test_the_first_answer_alone_is_compared_where_that_is_asked_for(label):
    _, pairs, _, _ = label(SpokenJudge(longer), compare="first")
    assert [pair.parents for pair in pairs] == [("q1b", "q1a"), ("q1c", "q1a")]


def test_a_judge_that_takes_what_stands_first_makes_no_pair(label):
    context, pairs, _, _ = label(SpokenJudge(lambda text, index: "[[A]]"), ANSWERS[:3])
    assert pairs == [] and context.drop_counts() == {"inconsistent": 3}
    assert context.summary["first_answer_preferred"] == 1.0 and context.summary["orders_agree"] == 0.0
    context, pairs, _, _ = label(SpokenJudge(lambda text, index: "[[C]]"), ANSWERS[:3])
    assert pairs == [] and context.drop_counts() == {"tie": 3}


def leaning(text: str, index: int) -> str:
    """Prefers the longer answer if it is shown first, and calls a tie if it is shown second."""
    one, other = map(len, shown(text))
    return "[[A]]" if one > other else "[[C]]"


@pytest.mark.parametrize(("keep", "reasons"), [("consistent", {"inconsistent": 1}), ("averaged", {})])
def test_averaging_counts_a_win_and_a_tie_as_a_win(label, keep, reasons):
    context, pairs, _, _ = label(SpokenJudge(leaning), ANSWERS[:2], keep=keep)
    assert context.drop_counts() == reasons
    assert [pair.extra["preference"] for pair in pairs] == ([0.75] if keep == "averaged" else [])


def test_what_cannot_be_read_is_asked_again_and_then_counted_not_guessed(label):
    def say(text, index):
        first, _ = shown(text)
        if first == "short":
            return "I'd rather not say." if index == 0 else "[[B]]"
        return "No." if first == "a longer answer" else "[[A]]"

    context, pairs, verdicts, _ = label(SpokenJudge(say), ANSWERS[:3])
    assert context.drop_counts() == {"unreadable": 2}  # the two comparisons that involve the longer answer
    assert [pair.parents for pair in pairs] == [("q1c", "q1a")]
    outcomes = Counter(v.outcome for v in verdicts)
    assert outcomes["unreadable"] == 2 + 2 * 2 and context.summary["verdicts_unreadable"] == 2
    again = [v for v in verdicts if v.answers == ("q1a", "q1c")]
    assert [(v.attempt, v.outcome, v.winner) for v in again] == [(0, "unreadable", None), (1, "winner", "q1c")]


def test_a_request_that_failed_is_a_failure_and_not_a_verdict(label):
    context, pairs, verdicts, _ = label(
        SpokenJudge(lambda text, index: None if shown(text)[0] == "short" else longer(text, index)), ANSWERS[:3]
    )
    assert context.drop_counts() == {"failed": 2} and len(pairs) == 1
    assert [v.outcome for v in verdicts].count("failed") == 2


def test_a_judge_of_which_nothing_can_be_read_ends_the_stage_with_what_it_said(label):
    with pytest.raises(StageError, match=r"\$judge.*As an AI model.*max_tokens"):
        label(SpokenJudge(lambda text, index: "As an AI model, I like both."), ANSWERS[:3])
    with pytest.raises(StageError, match="6 of 6 requests failed"):
        label(SpokenJudge(lambda text, index: None), ANSWERS[:3])
    judge = SpokenJudge(lambda text, index: "no")
    with pytest.raises(StageError, match=r"the first of 16: 'no'.*a grade such as"):
        label(judge, [sample(f"s{i}", f"q{i}", "answer") for i in range(100)], method="graded")
    assert len(judge.asked) == 16  # only eight answers, twice each


def test_one_order_is_drawn_from_the_seed_where_only_one_is_asked(label):
    many = [sample(f"s{i}{j}", f"q{i}", "x" * (i + j + 1)) for i in range(40) for j in (0, 1)]
    judge = SpokenJudge(longer)
    _, pairs, verdicts, _ = label(judge, many, orders="random")
    assert len(pairs) == len(verdicts) == 40
    swapped = sum(v.answers[0].endswith("1") for v in verdicts)
    assert 8 < swapped < 32
    assert [v.answers for v in label(SpokenJudge(longer), many, orders="random")[2]] == [v.answers for v in verdicts]


class Margins:
    """log p(A) - log p(B): two nats for the longer answer, plus one for the first position."""

    def __init__(self):
        self.words = set()

    def margins(self, asked, yes, no):
        self.words.add((yes, no))
        assert all("one letter" in messages[-1].content for messages in asked)
        lengths = [tuple(map(len, shown(messages[-1].content))) for messages in asked]
        return [1.0 + (2.0 if one > other else -2.0) for one, other in lengths]


def test_log_probabilities_are_averaged_over_the_orders(label):
    judge = Margins()
    context, pairs, verdicts, _ = label(judge, ANSWERS[:2], by="logprobs")
    (pair,) = pairs
    assert context.summary["examples"][0]["said"][-1]["text"] == "p(A) = 0.2689"
    first, second = (1 / (1 + math.exp(-margin)) for margin in (-1.0, 3.0))  # p(A), the longer one second, then first
    mean = ((1 - first) + second) / 2
    assert pair.parents == ("q1b", "q1a") and pair.extra["preference"] == pytest.approx(mean)
    assert pair.margin == pytest.approx(math.log(mean / (1 - mean)))
    assert [v.probability for v in verdicts] == pytest.approx([first, second]) and judge.words == {("A", "B")}


def test_grades_are_averaged_over_the_rounds_and_stand_beside_other_scores(label):
    def say(text, index):
        answer = between(text, "Answer", "End of the answer")
        if answer == "short":
            return "Rating: [[99]]"
        return f"Rating: [[{len(answer) % 7 + index + 1}]]"

    context, graded, verdicts, _ = label(
        SpokenJudge(say), ANSWERS[:4], method="graded", rounds=2, temperature=0.7, scale=[1, 9]
    )
    assert [s.id for s in graded] == ["q1b", "q1c", "q2a"]
    assert graded[0].scores == {"judge": (15 % 7 + 1 + 15 % 7 + 2) / 2}
    assert context.drop_counts() == {"unreadable": 1} and context.summary["mean_grade"] > 1
    assert context.summary["examples"][0]["said"][0]["score"] == graded[0].scores["judge"]
    assert [v.attempt for v in verdicts if v.answers == ("q1a",)] == [0, 1, 2, 3]
    assert {v.outcome for v in verdicts} == {"grade", "unreadable"}


def test_a_reference_answer_is_shown_unless_that_is_switched_off(label):
    answers = [sample(f"r{i}", "q", text, reference="the reference") for i, text in enumerate(("one", "three"))]
    for reference in (True, False):
        judge = SpokenJudge(longer)
        label(judge, answers, reference=reference)
        assert judge.asked and all(("the reference" in text) is reference for text in judge.asked)


def test_a_prompt_that_needs_a_reference_names_the_answer_that_has_none(label, tmp_path):
    path = tmp_path / "judge.yaml"
    path.write_text("prompt_template: '{question} {reference} {response}'")
    with pytest.raises(InputError, match="a conversation has no reference"):
        label(SpokenJudge(longer), ANSWERS[:2], method="graded", prompt=str(path))


def test_finished_units_are_not_asked_again(label):
    judge = SpokenJudge(longer)
    answers = [sample(f"s{i}", "q", "x" * (i + 1)) for i in range(5)]
    first = label(judge, answers, batch_prompts=1)
    asked = len(judge.asked)
    again = label(judge, answers, go_on=True, batch_prompts=1)
    assert len(judge.asked) == asked == 20 and again[1:3] == first[1:3]
    assert len(read_lines(first[0].folder / "journal.jsonl")) == 3  # units of eight comparisons, one, and one


def test_log_probabilities_are_asked_for_in_parts_of_a_unit(label, monkeypatch):
    monkeypatch.setattr(label_work, "BATCH_OF_ENDPOINTS", 3)
    sizes = []

    class Counting(Margins):
        def margins(self, asked, yes, no):
            sizes.append(len(asked))
            return super().margins(asked, yes, no)

    answers = [sample(f"s{i}", "q", "x" * (i + 1)) for i in range(5)]
    _, pairs, _, _ = label(Counting(), answers, by="logprobs", batch_prompts=64)
    assert sizes == [6, 6, 4, 4] and len(pairs) == 10  # eight comparisons in both orders, then two


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "graded", "compare": "first"}, "does not read compare"),
        ({"rounds": 3}, "does not read rounds"),
        ({"method": "graded", "rounds": 3}, "would give the same grade"),
        ({"by": "logprobs", "temperature": 0.5}, "does not read temperature"),
        ({"scale": [5, 5]}, "lowest grade"),
        ({"prompt_name": "x"}, "prompt_name"),
        ({"language": "ja", "prompt": "x.j2"}, "language"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Label.model_validate({"samples": "$a", "judge": "$j", **settings})


@needs_shared
def test_grades_of_real_judges_are_replayed_and_those_off_the_scale_are_not_taken(label):
    """Tulu-405B's grades of ELYZA-tasks-100, on a scale from 1 to 5; seven of them are 0."""
    found = [row for row in shaberi_rows() if "llmjudge-tulu405" in row["scores"]]
    odd = [row for row in found if row["scores"]["llmjudge-tulu405"] == 0]
    rows = list({(row["question"], row["answer"].strip()): row for row in [*odd, *found]}.values())[:300]
    grades = {f"s{i}": row["scores"]["llmjudge-tulu405"] for i, row in enumerate(rows)}
    verdicts = Verdicts({**row, "text": f"評価：[[{grades[f's{i}']}]]"} for i, row in enumerate(rows))
    answers = [sample(f"s{i}", row["question"], row["answer"], row["model"]) for i, row in enumerate(rows)]
    judge = SpokenJudge(lambda text, index: verdicts.texts(text, 1)[0])
    context, graded, _, _ = label(judge, answers, method="graded", scale=[1, 5], language="ja", retries=0)
    assert {each.id: each.scores["judge"] for each in graded} == {
        name: grade for name, grade in grades.items() if grade
    }
    assert context.drop_counts() == {"unreadable": 7}


class Asked:
    """Inputs whose answers are known."""

    takers: ClassVar[dict[str, list[str]]] = {}

    def __getitem__(self, ref):
        return Known(records=len(ANSWERS), samples=ANSWERS)


@pytest.mark.parametrize(
    ("settings", "calls"),
    [({}, 10), ({"orders": "random"}, 5), ({"compare": "first"}, 8), ({"method": "graded"}, 8)],
)
def test_the_estimate_bounds_calls_and_what_is_read(label, settings, calls):
    judge = SpokenJudge(lambda text, index: longer(text, index) if "method" not in settings else "[[5]]")
    label(judge, **settings)
    given = Label.model_validate({"samples": "$a", "judge": "$j", **settings})
    cost = estimate(given, Asked())
    assert cost.calls == calls >= len(judge.asked)
    assert sum(len(text.encode()) for text in judge.asked) <= cost.read < 4000 * calls
