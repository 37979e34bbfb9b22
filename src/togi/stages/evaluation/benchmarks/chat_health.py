"""Declares the benchmark `chat_health`: visible defects of answers, counted without a judge."""

from typing import Literal

from pydantic import Field

from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.prompted import PromptedSettings, estimate, measures


class ChatHealth(PromptedSettings):
    """Counts answers that end properly, are cut off or empty, leak strings of a chat template, open another role's
    turn, switch language, mix in letters of another script, repeat themselves or end in a loop. Also reports answer
    length."""

    type: Literal["chat_health"] = "chat_health"
    language: str | None = Field(
        default=None,
        pattern="^[a-z]{2}$",
        description="ISO 639-1 code of the language expected in answers; the language of each prompt when absent",
    )


BENCHMARK = BenchmarkType(
    "chat_health",
    ChatHealth,
    work="togi.stages.evaluation.benchmarks.chat_health_work",
    reasons=("no_answer",),
    estimate=estimate,
    measures=measures,
)
