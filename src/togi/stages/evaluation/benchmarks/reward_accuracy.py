"""Declares the benchmark `reward_accuracy`: agreement of reward models and judges with human preferences."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from togi.core.judging import NamedJudgePrompt
from togi.core.records import Pair, Record
from togi.core.settings import PairsRef, RecipePath, Ref, ScorerRef, refs_of
from togi.rewards.settings import SystemTurns
from togi.stages.bounds import TURN, ask_scores, prompt_size, read, turns_size, whole
from togi.stages.cost import Cost, count
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType

REASONS = ("tie", "same_text", "no_score", "no_verdict", "failed")
"""People call it a tie; both answers are the same text; a scorer cannot score an answer; a judge's text has no readable
verdict or grade; a request failed."""


class RewardAccuracy(NamedJudgePrompt, BenchmarkSettings):
    """How often a reward model scores the answer that people prefer higher. A language model is asked as a judge
    instead, with the answers in both orders."""

    type: Literal["reward_accuracy"] = "reward_accuracy"
    pairs: PairsRef | Annotated[tuple[PairsRef, ...], Field(min_length=1)] = Field(
        description="pairs that people judged; for a list of sets, their unweighted mean is shown too"
    )
    by: str = Field(default="", description="column with the category of a row, for the macro accuracy")
    best_of: str = Field(
        default="",
        description="column that marks pairs with a common right answer: a reward model is right if it scores that "
        "answer above all the others, as RewardBench 2 counts; a judge grades each answer alone, from 1 to 10",
    )
    system: SystemTurns = Field(
        default="keep",
        description="the prompts' system turns in what reward models read; drop: leave them out, as in the training",
    )
    read: Literal["text", "logprobs"] = Field(
        default="text",
        description="text: read a judge's text; logprobs: compare its log-probabilities of A and B, for small judges "
        "that write no clear verdict",
    )
    prompt: RecipePath | None = Field(
        default=None,
        description="your own judge prompt for two answers (for one, with best_of): Jinja (.j2) or FastChat's .jsonl",
    )
    temperature: float = Field(default=0.0, ge=0, le=2, description="temperature of a judge; 0 is greedy")
    max_tokens: int = Field(default=512, ge=1, description="maximum tokens of a judge's text, reasoning included")
    retries: int = Field(default=1, ge=0, le=8, description="how often to ask again after an unreadable verdict")

    @model_validator(mode="after")
    def _one_reading(self) -> Self:
        if self.best_of and self.read == "logprobs":
            raise ValueError(
                "best_of: a judge grades each answer in text, and `read: logprobs` compares two answers; remove one of "
                "the two settings"
            )
        return self


def measures(settings: RewardAccuracy) -> Sequence[Ref]:
    return refs_of(settings.pairs)


def estimate(settings: RewardAccuracy, asked: Asked) -> Cost:
    """Each subject reads both answers of each pair; a judge reads them in two orders. With `best_of` each answer is
    read once."""
    records, why = count(asked.inputs, refs_of(settings.pairs))
    if records is None:
        return Cost(unknown=[why])
    calls = 2 * records * len(asked.subjects)
    most = "at most " if settings.best_of else ""
    cost = Cost(notes=[f"{most}{calls:,} answers are scored or judgments requested"])
    for ref in asked.subjects:
        if isinstance(ref, ScorerRef):
            ask_scores(cost, ref.name, 2 * records, _apart(settings, asked, 0))
        else:
            _ask_judge(settings, asked, ref, 2 * records, cost)
    return cost


def _ask_judge(settings: RewardAccuracy, asked: Asked, ref: Ref, calls: int, cost: Cost) -> None:
    """Adds the requests to a judge: both answers of a pair in two orders, or each answer alone."""
    name = "graded" if settings.best_of else "pairwise"
    around = prompt_size(settings.prompt, "judge", name, settings.language) + TURN
    found = _apart(settings, asked, around) if settings.best_of else _together(settings, asked, around)
    cost.ask(ref.name, calls, found, calls * (1 if settings.read == "logprobs" else settings.max_tokens))
    cost.sampled = (cost.sampled or 0) + cost.asked[ref.name].written


def _together(settings: RewardAccuracy, asked: Asked, around: int) -> int | None:
    """The most tokens of requests that show both answers of a pair, in two orders."""
    came = [asked.inputs[ref] for ref in refs_of(settings.pairs)]
    return _twice(read(each, each.records or 0, around) for each in came)


def _apart(settings: RewardAccuracy, asked: Asked, around: int) -> int | None:
    """The most tokens of requests that show one answer of a pair each."""
    came = [asked.inputs[ref] for ref in refs_of(settings.pairs)]
    return _twice(read(each, each.records or 0, around, _side) for each in came)


def _side(record: Record) -> int:
    """The mean bytes of a pair's prompt with one of its answers, rounded up; all of another record."""
    return -(-(whole(record) + turns_size(record.prompt)) // 2) if isinstance(record, Pair) else whole(record)


def _twice(found: Iterable[int | None]) -> int | None:
    """Twice the sum; None if a part is unknown."""
    parts = list(found)
    return None if None in parts else 2 * sum(part for part in parts if part is not None)


BENCHMARK = BenchmarkType(
    "reward_accuracy",
    RewardAccuracy,
    work="togi.stages.evaluation.benchmarks.reward_accuracy_work",
    subjects=("scorer", "model"),
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
