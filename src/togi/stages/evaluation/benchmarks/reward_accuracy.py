"""`reward_accuracy`: reward models and judges against what people prefer."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from togi.core.settings import PairsRef, RecipePath, Ref, refs_of
from togi.stages.cost import Cost, count
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType

REASONS = ("tie", "same_text", "no_score", "no_verdict", "failed")
"""People call it a tie; both answers are the same text; a scorer cannot score an answer; nothing can be read in what a
judge says; a request failed."""


class RewardAccuracy(BenchmarkSettings):
    """How often a reward model gives the higher score to the answer that people prefer. A language model is asked as a
    judge instead, in both orders of the answers."""

    type: Literal["reward_accuracy"] = "reward_accuracy"
    pairs: PairsRef | Annotated[tuple[PairsRef, ...], Field(min_length=1)] = Field(
        description="pairs that people judged; a list is several sets, whose unweighted mean is shown too"
    )
    by: str = Field(default="", description="column of the rows that names their category, for the macro accuracy")
    language: Literal["en", "ja", "ru"] = Field(default="en", description="language of the judge's own prompt")
    read: Literal["text", "logprobs"] = Field(
        default="text",
        description="read a judge's text, or its log-probabilities of A and B: a small judge writes no clear verdict",
    )
    prompt: RecipePath | None = Field(
        default=None, description="a judge's prompt of your own for two answers: Jinja (.j2), .jsonl of FastChat"
    )
    prompt_name: str | None = Field(default=None, description="which prompt of a file that holds several")
    temperature: float = Field(default=0.0, ge=0, le=2, description="of a judge; 0 is greedy")
    max_tokens: int = Field(default=512, ge=1, description="tokens of what a judge says, its reasoning included")
    retries: int = Field(default=1, ge=0, le=8, description="how often an unreadable verdict is asked for again")


def measures(settings: RewardAccuracy) -> Sequence[Ref]:
    return refs_of(settings.pairs)


def estimate(settings: RewardAccuracy, asked: Asked) -> Cost:
    """Each subject reads both answers of each pair, a judge in two orders."""
    records, why = count(asked.inputs, refs_of(settings.pairs))
    if records is None:
        return Cost(unknown=[why])
    calls = 2 * records * len(asked.subjects)
    return Cost(calls=calls, notes=[f"{calls:,} answers are scored, or judgments asked for"])


BENCHMARK = BenchmarkType(
    "reward_accuracy",
    RewardAccuracy,
    work="togi.stages.evaluation.benchmarks.reward_accuracy_work",
    subjects=("scorer", "model"),
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
