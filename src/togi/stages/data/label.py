"""`label`: a judge says which answers are better (docs/judges.md)."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import JudgeSettings
from togi.core.settings import MAIN, NamedModelRef, SamplesRef
from togi.stages.base import StageSettings, StageType
from togi.stages.cost import Cost, Inputs, Known

REASONS = ("alone", "same_text", "empty_answer", "tie", "inconsistent", "unreadable", "failed")
"""What is dropped. A comparison that makes no pair has the id of its first answer."""

PAIRWISE = ("compare", "orders", "keep", "by")
GRADED = ("scale", "rounds")


class Label(JudgeSettings, StageSettings):
    """A judge compares the answers to each prompt, two at a time, which gives pairs; or it grades each answer, which
    gives the samples with their grade as `scores.judge`. Everything that it said is kept as verdicts."""

    type: Literal["label"] = "label"
    judge: NamedModelRef = Field(description="the model that judges; its name stands in the verdicts")
    samples: SamplesRef = Field(description="answers, several to each prompt where they are compared")
    method: Literal["pairwise", "graded"] = Field(default="pairwise", description="compare two answers, or grade one")
    compare: Literal["all", "first"] = Field(
        default="all", description="pairwise: every two answers to a prompt, or each with the first one"
    )
    orders: Literal["both", "random"] = Field(
        default="both", description="pairwise: ask with either answer first, or once in an order drawn from the seed"
    )
    keep: Literal["consistent", "averaged"] = Field(
        default="consistent",
        description="pairwise: pairs on which both orders agree, or those that win on average over the orders",
    )
    by: Literal["text", "logprobs"] = Field(
        default="text", description="pairwise: read the judge's text, or its log-probabilities of A and B"
    )
    rounds: int = Field(default=1, ge=1, le=64, description="graded: grades of each answer, which are averaged")
    batch_prompts: int = Field(default=64, ge=1, description="comparisons or answers in one unit of work")

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
            raise ValueError("by: logprobs samples nothing, so it does not read temperature; remove it")
        return self


def outputs(settings: Label) -> dict[str, str]:
    return {MAIN: "pairs" if settings.method == "pairwise" else "samples", "verdicts": "verdicts"}


def estimate(settings: Label, inputs: Inputs) -> Cost:
    """Every answer graded, or with every other one compared."""
    came = inputs[settings.samples]
    if came.records is None:
        return Cost(unknown=[came.why])
    asked = settings.rounds * came.records
    cost = Cost(records=came.records)
    if settings.method == "pairwise":
        found = _comparisons(settings, came)
        cost.records = found
        if found is None:
            cost.unknown.append("comparisons: how many answers each prompt has is not known before they are made")
            return cost
        asked = found * (2 if settings.orders == "both" else 1)
    cost.calls = asked
    cost.sampled = 0 if settings.by == "logprobs" else asked * settings.max_tokens
    if settings.by == "text" and settings.retries:
        cost.notes.append("calls: without those for unreadable verdicts")
    return cost


def _comparisons(settings: Label, came: Known) -> int | None:
    """How many comparisons the answers on the disk make; None where they are not there yet."""
    if came.records is None or len(came.samples) != came.records:
        return None
    counts: dict[Any, int] = {}
    for sample in came.samples:
        name = getattr(sample, "prompt", sample).id
        counts[name] = counts.get(name, 0) + 1
    return sum(n * (n - 1) // 2 if settings.compare == "all" else n - 1 for n in counts.values())


STAGE = StageType(
    "label",
    Label,
    outputs=outputs,
    work="togi.stages.data.label_work",
    reasons=REASONS,
    estimate=estimate,
)
