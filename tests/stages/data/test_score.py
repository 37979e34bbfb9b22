"""`score`: scores are stored with answers under their name, failures are counted, and batching changes no score."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from model_runs import write_scorer
from tiny import tiny_tokenizer
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
from togi.stages.data import score_work
from togi.stages.data.score import STAGE, Score
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
