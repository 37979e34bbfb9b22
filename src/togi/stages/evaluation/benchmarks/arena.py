"""Declares the benchmark `arena`: pairwise battles of models against a baseline, as in arena-hard and Ru-Arena."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from togi.core.judging import NamedJudgePrompt
from togi.core.sampling import Sampling
from togi.core.settings import PromptsRef, RecipePath, Ref
from togi.stages.bounds import TURN, answered, prompt_size, read, text_size
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType, summed

REASONS = ("no_answer", "failed", "no_verdict", "unknown_label")
"""In this order: the model or the baseline gave no answer; the request to the judge failed; the judge's text has none
of the five labels, or several; the label is another one. If one game of a question has no verdict, the other is dropped
with it."""


class Arena(NamedJudgePrompt, BenchmarkSettings, Sampling):
    """Every model answers the questions. A judge compares each answer with the baseline's in two games, one in each
    order, and gives one of five labels. Reports win rates against the baseline and a leaderboard. Answers, judgments
    and battles are stored in arena-hard's file layouts."""

    type: Literal["arena"] = "arena"
    questions: PromptsRef = Field(description="questions to answer")
    rules: Literal["v0.1", "v2"] = Field(
        default="v0.1",
        description="how labels are read: v0.1 drops a game without a clear label, as Ru-Arena does; v2 uses the last "
        "label of a text, and drops the whole question if a game has none",
    )
    system: str | None = Field(default=None, min_length=1, description="system prompt of every question without one")
    length_control: bool = Field(default=False, description="also show the win rate with Ru-Arena's length control")
    style_control: Literal["length", "markdown", "both"] | None = Field(
        default=None, description="also show the win rate with arena-hard's style control"
    )
    temperature: float = Field(default=0.0, ge=0, le=2, description="temperature of the answers; 0 is greedy")
    max_tokens: int = Field(default=2048, ge=1, description="maximum tokens of an answer, terminator included")
    read: Literal["text", "logprobs"] = Field(
        default="text",
        description="text: read the label from the judge's text; logprobs: compare the judge's log-probabilities of A "
        "and B over both games, which suits small judges but never gives a much-better label",
    )
    prompt: RecipePath | None = Field(
        default=None,
        description="your own judge prompt that asks for the five labels: Jinja (.j2) or FastChat's .jsonl",
    )
    judge_temperature: float = Field(default=0.0, ge=0, le=2, description="temperature of the judge")
    judge_max_tokens: int = Field(default=4096, ge=1, description="maximum tokens of the judge's text")
    retries: int = Field(default=1, ge=0, le=8, description="how often to ask again after a text without any label")


def measures(settings: Arena) -> Sequence[Ref]:
    return [settings.questions]


def estimate(settings: Arena, asked: Asked) -> Cost:
    """Every model answers each question; the judge reads each answer, except the baseline's, in two games."""
    came = asked.inputs[settings.questions]
    if came.records is None:
        return Cost(unknown=[came.why])
    cost, system = Cost(), TURN + text_size(settings.system)
    for name in asked.everyone:
        cost.ask(name, came.records, read(came, came.records, system), came.records * settings.max_tokens)
    games = 2 * (len(asked.everyone) - 1) * came.records
    if asked.judge is not None:
        prompt = "arena" if settings.read == "text" else "pairwise"
        around = prompt_size(settings.prompt, "judge", prompt, settings.language) + TURN
        shown = read(came, games, around + 2 * settings.max_tokens, answered)
        written = settings.judge_max_tokens if settings.read == "text" else 1
        cost.ask(asked.judge.name, games, shown, games * written)
    cost.notes.append(f"{games:,} games are judged, not counting repeated requests")
    return summed(cost)


BENCHMARK = BenchmarkType(
    "arena",
    Arena,
    work="togi.stages.evaluation.benchmarks.arena_work",
    judged=lambda settings: True,
    reasons=REASONS,
    estimate=estimate,
    measures=measures,
)
