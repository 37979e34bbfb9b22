"""`answers`: how answers end, how long they are, and what a reward model gives them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from togi.core.sampling import Sampling
from togi.core.settings import PromptsRef, Ref, ScorerRef
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType


class Answers(BenchmarkSettings, Sampling):
    """Every model answers the same prompts: how many answers end properly, how long they are, what a reward model gives
    them."""

    type: Literal["answers"] = "answers"
    prompts: PromptsRef = Field(description="what is asked")
    reward: ScorerRef | None = Field(default=None, description="a reward model that scores the answers")
    samples: int = Field(default=1, ge=1, description="answers of each model to each prompt")


def measures(settings: Answers) -> Sequence[Ref]:
    return [settings.prompts]


def estimate(settings: Answers, asked: Asked) -> Cost:
    """Every model answers each prompt."""
    came = asked.inputs[settings.prompts]
    if came.records is None:
        return Cost(unknown=[came.why])
    calls = len(asked.subjects) * came.records
    samples = calls * settings.samples
    return Cost(samples=samples, sampled=samples * settings.max_tokens, calls=calls)


BENCHMARK = BenchmarkType(
    "answers",
    Answers,
    work="togi.stages.evaluation.benchmarks.answers_work",
    reasons=("no_answer", "no_score"),
    estimate=estimate,
    measures=measures,
)
