"""`label`: a judge decides which answers are better (docs/judges.md)."""

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import JudgeSettings
from togi.core.records import Record, Sample
from togi.core.settings import MAIN, NamedModelRef, SamplesRef
from togi.stages.base import StageSettings, StageType
from togi.stages.cost import Cost, Inputs, Known, passing_on

REASONS = ("alone", "same_text", "empty_answer", "tie", "inconsistent", "unreadable", "failed")
"""Drop reasons. A comparison that yields no pair is dropped under the id of its first answer."""

PAIRWISE = ("compare", "orders", "keep", "by")
GRADED = ("scale", "rounds")


class Label(JudgeSettings, StageSettings):
    """A judge compares the answers to each prompt, two at a time, and the stage outputs pairs; or it grades each
    answer, and the stage outputs the samples with their grade as `scores.judge`. All its judgements are kept as
    verdicts."""

    type: Literal["label"] = "label"
    judge: NamedModelRef = Field(description="the judge model; verdicts record its name")
    samples: SamplesRef = Field(description="the answers; pairwise needs several to each prompt")
    method: Literal["pairwise", "graded"] = Field(default="pairwise", description="compare two answers, or grade one")
    compare: Literal["all", "first"] = Field(
        default="all",
        description="pairwise: compare every two answers to a prompt, or each answer only with the first one",
    )
    orders: Literal["both", "random"] = Field(
        default="both",
        description="pairwise: ask twice, with each answer first, or once in an order drawn from the seed",
    )
    keep: Literal["consistent", "averaged"] = Field(
        default="consistent",
        description="pairwise: keep pairs on which both orders agree, or decide by the average over both orders",
    )
    by: Literal["text", "logprobs"] = Field(
        default="text", description="pairwise: read the judge's text, or its log-probabilities of A and B"
    )
    rounds: int = Field(default=1, ge=1, le=64, description="graded: number of grades per answer; they are averaged")
    batch_prompts: int | None = Field(
        default=None,
        ge=1,
        description="comparisons or answers in one unit of work; when absent: 64, or 512 if the judge is on a server",
    )

    @model_validator(mode="after")
    def _reads_what_is_set(self) -> Self:
        other = GRADED if self.method == "pairwise" else PAIRWISE
        unread = [name for name in other if getattr(self, name) != type(self).model_fields[name].default]
        if unread:
            raise ValueError(f"method: {self.method} does not read {', '.join(unread)}; remove it")
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.rounds > 1 and self.temperature == 0:
            raise ValueError(f"{self.rounds} rounds at temperature 0 would give the same grade; raise the temperature")
        if self.by == "logprobs" and self.temperature != 0:
            raise ValueError("by: logprobs does not sample, so it does not read temperature; remove it")
        return self


def outputs(settings: Label) -> dict[str, str]:
    return {MAIN: "pairs" if settings.method == "pairwise" else "samples", "verdicts": "verdicts"}


def estimate(settings: Label, inputs: Inputs) -> Cost:
    """Every answer is graded, or compared with every other one. Known texts count as bytes, an upper bound of their
    tokens."""
    came = inputs[settings.samples]
    answer = 1 if settings.by == "logprobs" else settings.max_tokens
    if came.records is None:
        return Cost(answer=answer, unknown=[came.why])
    graded = settings.method == "graded"
    cost = Cost(records=came.records if graded else None, answer=answer)
    if len(came.samples) != came.records and came.group is not None:
        return _grouped(settings, came, answer)
    if len(came.samples) != came.records:
        what = "tokens read" if graded else "comparisons"
        cost.unknown.append(f"{what}: the number of answers per prompt is unknown until they are generated")
        cost.calls = settings.rounds * came.records if graded else None
        return cost
    times = settings.rounds if graded else 2 if settings.orders == "both" else 1
    asked = _by_prompt(came.samples).values()
    sizes = [size for answers in asked for size in (answers if graded else _compared(settings, answers))]
    cost.records, cost.calls = len(sizes), times * len(sizes)
    cost.read = times * (sum(sizes) + settings.prompt_bytes * len(sizes))
    cost.sampled = 0 if settings.by == "logprobs" else cost.calls * settings.max_tokens
    if settings.by == "text" and settings.retries:
        cost.notes.append("calls: without retries for unreadable verdicts")
    return cost


def _grouped(settings: Label, came: Known, answer: int) -> Cost:
    """Estimates the cost for answers that do not exist yet: `came.group` per prompt, each of maximum length."""
    assert came.records is not None and came.group is not None
    each, graded = came.group, settings.method == "graded"
    pairs = each * (each - 1) // 2 if settings.compare == "all" else each - 1
    records = came.records if graded else came.records // each * pairs
    times = settings.rounds if graded else 2 if settings.orders == "both" else 1
    cost = passing_on(came, records, 0 if graded else came.added)
    cost.answer, cost.calls = answer, times * records
    cost.sampled = 0 if settings.by == "logprobs" else cost.calls * settings.max_tokens
    cost.outputs[MAIN].group = each if graded else None
    if came.tokens is not None:
        shown = (came.tokens + came.added) * (1 if graded else 2) + settings.prompt_bytes
        cost.read = math.ceil(cost.calls * shown)
    if settings.by == "text" and settings.retries:
        cost.notes.append("calls: without retries for unreadable verdicts")
    return cost


def _by_prompt(samples: Sequence[Record]) -> dict[str, list[int]]:
    """Sizes of the answers to each prompt in bytes, prompt included."""
    found: dict[str, list[int]] = {}
    for sample in samples:
        assert isinstance(sample, Sample)
        turns = sum(len(turn.content.encode()) for turn in sample.prompt.messages)
        found.setdefault(sample.prompt.id, []).append(turns + len(sample.text.encode()))
    return found


def _compared(settings: Label, sizes: Sequence[int]) -> list[int]:
    """Sizes in bytes of all comparisons of the answers to one prompt; the prompt is counted twice."""
    firsts = sizes if settings.compare == "all" else sizes[:1]
    return [one + other for place, one in enumerate(firsts) for other in sizes[place + 1 :]]


STAGE = StageType(
    "label",
    Label,
    outputs=outputs,
    work="togi.stages.data.label_work",
    version=3,
    reasons=REASONS,
    model_rows="togi.stages.data.label_rows",
    estimate=estimate,
)
