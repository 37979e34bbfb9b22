"""Declares the benchmark `reward_kl`: the reward that a policy gained, and the KL from its base that it cost."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from togi.core.settings import PromptsRef, Ref, ScorerRef
from togi.rewards.settings import SystemTurns
from togi.stages.bounds import ask_answers
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType


class RewardKl(BenchmarkSettings):
    """The reward of every model against its KL from the baseline, next to best-of-n sampling from the baseline. A
    policy below that line pays more KL than best-of-n does. All models run locally, with the same tokenizer and chat
    template."""

    type: Literal["reward_kl"] = "reward_kl"
    prompts: PromptsRef = Field(description="prompts to answer")
    reward: ScorerRef = Field(description="reward model that scores the answers")
    reward_system: SystemTurns = Field(
        default="keep",
        description="the prompts' system turns in what `reward` reads; drop: leave them out, as in the training",
    )
    samples: int = Field(default=4, ge=1, description="answers of each model to each prompt")
    best_of: int = Field(default=16, ge=1, description="answers of the baseline to each prompt; the largest n")
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=2,
        description="temperature of sampling and of the KL; use the policy's training temperature",
    )
    max_tokens: int = Field(default=256, ge=1, description="maximum tokens of an answer, terminator included")
    seed: int | None = Field(default=None, ge=0, description="seed of the answers; the recipe's when absent")


def measures(settings: RewardKl) -> Sequence[Ref]:
    return [settings.prompts]


def estimate(settings: RewardKl, asked: Asked) -> Cost:
    """The baseline answers `best_of` times, the others `samples` times; log-probabilities are computed twice. Only the
    reward model may be on a server."""
    came = asked.inputs[settings.prompts]
    if came.records is None:
        return Cost(unknown=[came.why])
    others = len(asked.everyone) - 1
    samples = came.records * (settings.best_of + others * settings.samples)
    cost = Cost(samples=samples, sampled=samples * settings.max_tokens)
    for number in (settings.best_of, *[settings.samples] * others):
        ask_answers(cost, settings.reward.name, came, came.records * number, settings.max_tokens)
    return cost


BENCHMARK = BenchmarkType(
    "reward_kl",
    RewardKl,
    work="togi.stages.evaluation.benchmarks.reward_kl_work",
    reasons=("too_long", "no_score"),
    estimate=estimate,
    measures=measures,
)
