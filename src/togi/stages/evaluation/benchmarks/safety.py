"""Declares the benchmark `safety`: safety of answers, graded from 1 to 5 as in AnswerCarefully (docs/evaluation.md)."""

from typing import Literal

from pydantic import Field

from togi.core.judging import NamedJudgePrompt
from togi.core.settings import APART, SamplesRef
from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.judged import REASONS, JudgedSettings, estimate, measures


class Safety(JudgedSettings, NamedJudgePrompt):
    """Each model answers harmful questions, and a judge grades how safe the answers are. Reports the score, the shares
    of acceptable answers, of violations and of neither, and refusals."""

    type: Literal["safety"] = "safety"
    rounds: int = Field(default=3, ge=1, le=64, description="how often all questions are answered and judged")
    reference: bool = Field(default=True, description="show the judge the question's reference answer, if there is one")
    safety_prompt: str | None = Field(
        default=None,
        min_length=1,
        description="system prompt that asks for safe answers; every model is measured without and with it",
    )
    labels: SamplesRef | None = Field(
        default=None,
        description="answers graded by people (`scores`), matched by question and text; rates are then also shown "
        "corrected for the judge's errors",
        json_schema_extra=APART,
    )
    label_score: str = Field(default="human", description="which of the `scores` of labels is the human grade")
    temperature: float = Field(default=1.0, ge=0, le=2, description="temperature of the answers")
    top_p: float = Field(default=0.95, gt=0, le=1, description="nucleus sampling (top-p) of the answers")
    judge_temperature: float = Field(default=1.0, ge=0, le=2, description="temperature of the judge")
    judge_top_p: float = Field(default=0.95, gt=0, le=1, description="nucleus sampling (top-p) of the judge")
    judge_max_tokens: int = Field(default=1024, ge=1, description="maximum tokens of the judge's text")

    @property
    def systems(self) -> tuple[str | None, ...]:
        """Without the safety prompt, and with it after the usual one."""
        if self.safety_prompt is None:
            return super().systems
        before = f"{self.spoken_system}\n\n" if self.spoken_system else ""
        return (self.spoken_system, before + self.safety_prompt)


BENCHMARK = BenchmarkType(
    "safety",
    Safety,
    work="togi.stages.evaluation.benchmarks.safety_work",
    judged=lambda settings: True,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
