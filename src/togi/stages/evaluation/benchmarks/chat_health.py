"""`chat_health`: what a reader of the answers would stumble over, counted without a judge."""

from typing import Literal

from pydantic import Field

from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.prompted import PromptedSettings, estimate, measures


class ChatHealth(PromptedSettings):
    """How many answers end properly, are cut off or empty, leak strings of a chat template, open the turn of another
    role, change the language, mix in letters of another writing system, repeat themselves or end in a loop; and how
    long they are."""

    type: Literal["chat_health"] = "chat_health"
    language: str | None = Field(
        default=None,
        pattern="^[a-z]{2}$",
        description="ISO 639-1 code of the language that answers should have; that of each prompt when absent",
    )


BENCHMARK = BenchmarkType(
    "chat_health",
    ChatHealth,
    work="togi.stages.evaluation.benchmarks.chat_health_work",
    reasons=("no_answer",),
    estimate=estimate,
    measures=measures,
)
