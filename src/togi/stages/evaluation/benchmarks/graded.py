"""Declares the benchmark `graded`: any question set graded by a judge on a scale, such as ELYZA-tasks-100, Tengu and
Rakuda."""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import NamedJudgePrompt
from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.judged import REASONS, JudgedSettings, estimate, measures


class GradedSet(JudgedSettings, NamedJudgePrompt):
    """Each model answers every turn of every question, and a judge grades the answers. The judge sees the question's
    reference answer and rubric if it has them."""

    type: Literal["graded"] = "graded"
    scale: tuple[int, int] = Field(default=(1, 10), description="lowest and highest grade")
    reference: bool = Field(default=True, description="show the judge the question's reference answer, if there is one")
    rubric: str | None = Field(
        default=None, min_length=1, description="column with the question's rubric: what a good answer contains"
    )
    category: str = Field(default="category", description="column with the question's category, if there is one")
    temperature: float = Field(default=0.0, ge=0, le=2, description="temperature of the answers; 0 is greedy")

    @model_validator(mode="after")
    def _has_a_scale(self) -> Self:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}: put the lowest grade first, then the highest")
        return self


BENCHMARK = BenchmarkType(
    "graded",
    GradedSet,
    work="togi.stages.evaluation.benchmarks.graded_work",
    judged=lambda settings: True,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
