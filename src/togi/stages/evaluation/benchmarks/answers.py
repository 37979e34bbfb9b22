"""`answers`: how answers end, how long they are, and how a reward model scores them."""

from typing import Literal

from pydantic import Field

from togi.core.settings import ScorerRef
from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.prompted import PromptedSettings, estimate, measures


class Answers(PromptedSettings):
    """Every model answers the same prompts. Reports how many answers end properly, how long they are, and how a reward
    model scores them."""

    type: Literal["answers"] = "answers"
    reward: ScorerRef | None = Field(default=None, description="reward model that scores the answers")


BENCHMARK = BenchmarkType(
    "answers",
    Answers,
    work="togi.stages.evaluation.benchmarks.answers_work",
    reasons=("no_answer", "no_score"),
    estimate=estimate,
    measures=measures,
)
