"""Declares the benchmark `answers`: how answers end, how long they are, and how a reward model scores them."""

from typing import Literal

from pydantic import Field

from togi.core.settings import ScorerRef
from togi.stages.bounds import ask_answers
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkType
from togi.stages.evaluation.benchmarks.prompted import PromptedSettings, estimate, measures


class Answers(PromptedSettings):
    """Every model answers the same prompts. Reports how many answers end properly, how long they are, and how a reward
    model scores them."""

    type: Literal["answers"] = "answers"
    reward: ScorerRef | None = Field(default=None, description="reward model that scores the answers")


def cost(settings: Answers, asked: Asked) -> Cost:
    """With a reward model, it scores every answer."""
    found, came = estimate(settings, asked), asked.inputs[settings.prompts]
    if settings.reward is not None and came.records is not None:
        for _ in asked.subjects:
            ask_answers(found, settings.reward.name, came, came.records * settings.samples, settings.max_tokens)
    return found


BENCHMARK = BenchmarkType(
    "answers",
    Answers,
    work="togi.stages.evaluation.benchmarks.answers_work",
    reasons=("no_answer", "no_score"),
    estimate=cost,
    measures=measures,
)
