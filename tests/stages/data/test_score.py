"""`score`: scores are stored with answers under their name, failures are counted, and batching changes no score."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_runs import write_scorer
from tiny import tiny_tokenizer
from tiny_encoders import write_encoder
from transformers import AutoModelForSequenceClassification

from togi.core.codec import read_records, write_records
from togi.core.errors import GraderError, InputError, StageError
from togi.core.files import read_object, write_json
from togi.core.records import Completion, Message, Prompt, Sample
from togi.core.settings import NamedScorerRef, SamplesRef
from togi.core.sources import ModelSource
from togi.model.card import CARD
from togi.stages.base import MODEL_FOLDER, RECORDS_FILE, output_path
from togi.stages.context import Context, Control, Resolved
from togi.stages.cost import Known
from togi.stages.data import score_work
from togi.stages.data.score import STAGE, Score, estimate
from togi.stages.data.score_work import run

TEXTS = ["a", "bb", "ccc", "dddd", "", "ffffff"]


def samples(texts: Sequence[str] = TEXTS) -> list[Sample]:
    return [
        Sample(
            id=f"s{i}",
            prompt=Prompt(id=f"p{i // 3}", messages=(Message("user", f"Why {i // 3}?"),)),
            completion=Completion(text=text, stop="terminator"),
            scores={"old": 1.0},
            model="m",
            index=i % 3,
        )
        for i, text in enumerate(texts)
    ]


def context(folder: Path, records: list[Sample], output: str = "main", stage: str = "score-0") -> Context:
    ref = SamplesRef("$x" if output == "main" else f"$x.{output}")
    write_records(folder / "x" / output_path("samples", ref.output), "samples", records)
    inputs: dict[str, Resolved] = {
        ref: Resolved("samples", folder=folder / "x"),
        NamedScorerRef("$rm"): Resolved("scorer", source=ModelSource(kind="path", name=str(folder / "rm"))),
    }
    made = Context("graded", folder / stage, folder, 1, inputs, Control(send=lambda event: None), compute="float32")
    made.folder.mkdir(exist_ok=True)
    made.reasons = STAGE.reasons
    return made


def scored(made: Context, **given: Any) -> list[Sample]:
    run(Score.model_validate({"samples": "$x", "scorer": "$rm", **given}), made)
    made.finish()
    return read_records(made.folder / RECORDS_FILE)[1]  # type: ignore[return-value]


class Lengths:
    """Scores an answer by its length; an empty answer cannot be scored."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | GraderError]:
        self.asked.append(len(items))
        return [float(len(text)) if text else GraderError("nothing to score") for _, text in items]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Lengths:
    found = Lengths()
    monkeypatch.setattr(score_work, "scorer", lambda context, ref: found)
    return found


def test_a_score_is_added_under_its_name_and_a_failure_is_dropped(tmp_path, judge):
    made = context(tmp_path, samples())
    found = scored(made, batch_samples=4)
    assert [each.scores for each in found] == [{"old": 1.0, "rm": float(n)} for n in (1, 2, 3, 4, 6)]
    assert [each.id for each in found] == ["s0", "s1", "s2", "s3", "s5"] and judge.asked == [4, 2]
    assert [(drop.id, drop.reason) for drop in made.drops] == [("s4", "failed")]
    assert "nothing to score" in (made.folder / "alarms.jsonl").read_text()
    figures = made.summary["score rm"]["m"]
    assert (figures["mean"], figures["min"], figures["max"], figures["p50"]) == (3.2, 1.0, 6.0, 3.0)
    assert made.summary["characters"]["m"] == figures, "this judge's scores are lengths"
    assert list(figures) == ["mean", "std", "min", "max", "p3", "p10", "p25", "p50", "p75", "p90", "p97"]
    assert scored(context(tmp_path, samples(), stage="score-1"), **{"as": "length"})[0].scores == {
        "old": 1.0,
        "length": 1.0,
    }


def test_no_score_takes_the_place_of_another(tmp_path, judge):
    with pytest.raises(InputError, match=r"\$x already has a score 'old', which would be overwritten; .* `as`"):
        scored(context(tmp_path, samples()), **{"as": "old"})
    assert not judge.asked


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_no_number_is_a_failure(tmp_path, judge, monkeypatch, odd):
    monkeypatch.setattr(judge, "score", lambda items: [odd if i else 2.0 for i in range(len(items))])
    found = scored(context(tmp_path, samples()))
    assert [each.scores["rm"] for each in found] == [2.0]


def test_where_nothing_can_be_scored_the_first_reason_is_told(tmp_path, judge):
    with pytest.raises(StageError, match="none of 2 samples could be scored; the first: sample s0: nothing to score"):
        scored(context(tmp_path, samples(["", ""])))

    class Down:
        def score(self, items):
            raise GraderError("the server is down")

    score_work.scorer = lambda context, ref: Down()  # type: ignore[assignment]
    with pytest.raises(StageError, match="the server is down"):
        scored(context(tmp_path / "other", samples()))


def test_what_a_policy_sampled_is_scored_without_its_terminator(tmp_path, judge):
    """Such samples end with the terminator because the policy was trained on it."""
    records = samples(["abc<|im_end|>", "ab<|im_start|>user"])
    made = context(tmp_path, records, "samples")
    template = {"terminator": "<|im_end|>", "turn_starts": ["<|im_start|>"]}
    write_json(tmp_path / "x" / MODEL_FOLDER / CARD, {"template": template})
    found = scored(made, samples="$x.samples")
    assert [(each.text, each.scores["rm"]) for each in found] == [("abc", 3.0), ("ab", 2.0)]
    assert made.summary["characters"]["m"]["max"] == 3.0


# --- what the scorer reads --------------------------------------------------------------------------------------------

SYSTEM, ASK = Message("system", "Be brief."), Message("user", "What is 6 x 7?")


class Reading(Lengths):
    """Remembers the conversations."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[Message, ...]] = []

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | GraderError]:
        self.read += [messages for messages, _ in items]
        return super().score(items)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reading:
    found = Reading()
    monkeypatch.setattr(score_work, "scorer", lambda context, ref: found)
    return found


def known() -> list[Sample]:
    """Answers to a prompt with a system turn, to one without, and to one without a reference answer."""
    asked = [((SYSTEM, ASK), " 42\n"), ((ASK,), "42"), ((SYSTEM, ASK), None)]
    return [
        replace(each, prompt=Prompt(id=f"p{i}", messages=messages, answer=answer))
        for i, (each, (messages, answer)) in enumerate(zip(samples(["a", "b", "c"]), asked, strict=True))
    ]


TOLD = "The correct final answer must be: 42"


@pytest.mark.parametrize(
    ("given", "systems"),
    [
        ({}, ["Be brief.", None, "Be brief."]),
        ({"system": "drop"}, [None, None, None]),
        ({"reference": True}, [f"{TOLD}\n\nBe brief.", TOLD, "Be brief."]),
        ({"reference": True, "system": "drop"}, [TOLD, TOLD, None]),
        ({"reference": "正解: {answer}", "system": "drop"}, ["正解: 42", "正解: 42", None]),
    ],
)
def test_a_scorer_reads_system_turns_and_reference_answers_as_set(tmp_path, reads, given, systems):
    write_scorer(tmp_path / "rm")
    found = scored(context(tmp_path, known()), **given)
    assert reads.read == [(ASK,) if text is None else (Message("system", text), ASK) for text in systems]
    assert [each.prompt for each in found] == [each.prompt for each in known()], "the samples stay as they are"


def test_tools_stay_with_the_first_turn_of_what_is_scored(tmp_path, reads):
    tools = {"tools": [{"name": "add"}]}
    write_scorer(tmp_path / "rm")
    own = replace(known()[1], prompt=Prompt(id="p", messages=(replace(ASK, extra=tools),), answer="42"))
    scored(context(tmp_path, [own]), reference=True)
    assert reads.read == [(Message("system", TOLD, extra=tools), ASK)]


def test_a_reference_that_no_prompt_has_or_that_the_scorer_would_not_see_is_refused(tmp_path, reads):
    folder = tmp_path / "rm"
    write_scorer(folder)
    with pytest.raises(InputError, match=r"reference needs prompts with a reference answer, and no prompt of \$x has"):
        scored(context(tmp_path, samples()), reference=True)
    config = read_object(folder / "tokenizer_config.json")
    turn = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    template = turn + "{% if add_generation_prompt %}[assistant]{% endif %}"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    write_json(folder / "tokenizer_config.json", {**config, "chat_template": template})
    with pytest.raises(InputError, match=r"reference: template 'tokenizer' of \$rm does not write the system turn"):
        scored(context(tmp_path, known(), stage="score-1"), reference=True)
    assert not reads.read
    assert len(scored(context(tmp_path, known(), stage="score-2"))) == 3


def test_an_encoder_reads_the_reference_answer_with_the_prompt(tmp_path):
    write_encoder(tmp_path / "rm")
    plain, told = (
        [each.scores["rm"] for each in scored(context(tmp_path, known(), stage=name), **given)]
        for name, given in (("score-1", {}), ("score-2", {"reference": "= {answer}"}))
    )
    assert plain[0] != told[0] and plain[1] != told[1] and plain[2] == pytest.approx(told[2])


def test_a_plan_counts_the_reference_answers_that_are_read():
    long = replace(known()[1], prompt=Prompt(id="p", messages=(ASK,), answer="4" * 500))
    plain, told = (
        Score.model_validate({"samples": "$x", "scorer": "$rm", **given}) for given in ({}, {"reference": True})
    )
    inputs: Any = {plain.samples: Known(records=2, samples=[long, known()[1]])}
    sizes = [estimate(settings, inputs).read for settings in (plain, told)]
    assert sizes[0] and sizes[1] and sizes[1] > sizes[0] + 500 + 2 + 2 * len("The correct final answer must be: ")


def test_a_text_without_room_for_the_answer_is_refused():
    with pytest.raises(ValueError, match=r"'The answer:' does not contain \{answer\}, which the reference answer"):
        Score.model_validate({"samples": "$x", "scorer": "$rm", "reference": "The answer:"})


# --- a reward model of the library ------------------------------------------------------------------------------------


def test_a_score_is_the_same_in_every_batch_and_read_where_the_library_reads_it(tmp_path):
    """The conversation ends with the pad token, so the library reads the token before it."""
    write_scorer(tmp_path / "rm")
    records = samples(["So.", "Because it is.", "No", "So.", "x" * 40, "Why not?"])
    whole = [each.scores["rm"] for each in scored(context(tmp_path, records))]
    apart = [each.scores["rm"] for each in scored(context(tmp_path, records, stage="score-1"), batch_samples=1)]
    turned = [each.scores["rm"] for each in scored(context(tmp_path, records[::-1], stage="score-2"), batch_samples=4)]
    turned.reverse()
    assert whole == pytest.approx(apart, abs=1e-5) and whole == pytest.approx(turned, abs=1e-5)
    assert len(set(whole)) == 6
    before = score_of_the_library(tmp_path / "rm", ASKED.removesuffix("<eos>"), at_last=True)
    assert whole[0] == pytest.approx(before, abs=1e-5)
    assert whole[0] == pytest.approx(score_of_the_library(tmp_path / "rm", ASKED), abs=1e-5)


@pytest.mark.parametrize("pad", [None, 0])
def test_a_conversation_that_ends_with_another_token_is_read_at_its_last_one(tmp_path, pad):
    write_scorer(tmp_path / "rm")
    config = read_object(tmp_path / "rm" / "config.json")
    write_json(tmp_path / "rm" / "config.json", {**config, "pad_token_id": pad})
    found = scored(context(tmp_path, samples(["So."])))
    assert found[0].scores["rm"] == pytest.approx(score_of_the_library(tmp_path / "rm", ASKED, at_last=True), abs=1e-5)


ASKED = "[user]Why 0?<eos>[assistant]So.<eos>"
"""The first of `samples(["So."])` as the scorer's template writes it."""


def score_of_the_library(folder: Path, text: str, *, at_last: bool = False) -> float:
    """The library's score of one text as it reads it, or at the last token."""
    net: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if at_last:
        net.config.pad_token_id = None
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return net(torch.tensor([ids])).logits[0, 0].item()
