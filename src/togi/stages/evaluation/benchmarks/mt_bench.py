"""Declares the benchmark `mt_bench`: two-turn questions in eight categories, graded from 1 to 10
(docs/evaluation.md)."""

from typing import Annotated, Literal

from pydantic import Field

from togi.core.settings import APART, DocumentsRef
from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.judged import REASONS, JudgedSettings, estimate, measures

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Temperatures by category, as in FastChat and llm-jp-judge."""


class MtBench(JudgedSettings):
    """MT-Bench: each model answers two turns, the second after its own first answer, and a judge grades both. Question
    rows have `question_id`, `category` and `turns`."""

    type: Literal["mt_bench"] = "mt_bench"
    references: DocumentsRef | None = Field(
        default=None,
        description="reference answers: rows with `question_id` and `choices`, as in FastChat's files",
        json_schema_extra=APART,
    )
    reference_categories: tuple[str, ...] = Field(
        default=("math", "reasoning", "coding"),
        description="categories in which the judge is shown the reference answers",
    )
    rounds: int = Field(default=3, ge=1, le=64, description="how often all questions are answered and judged")
    temperatures: dict[str, Annotated[float, Field(ge=0, le=2)]] = Field(
        default=TEMPERATURES, description="temperature of the answers by category"
    )
    temperature: float = Field(default=0.7, ge=0, le=2, description="temperature of the answers in other categories")


BENCHMARK = BenchmarkType(
    "mt_bench",
    MtBench,
    work="togi.stages.evaluation.benchmarks.mt_bench_work",
    judged=lambda settings: True,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
