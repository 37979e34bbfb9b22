"""`reward_kl`: what a policy gained in reward, and how far it went from its base for it."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from togi.core.settings import PromptsRef, Ref, ScorerRef
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings, BenchmarkType


class RewardKl(BenchmarkSettings):
    """The reward of every model against its KL from the baseline, beside the best of n answers of the baseline: a
    policy that lies below that line pays more KL than plain choosing does. Models are computed here and have one
    tokenizer and chat template."""

    type: Literal["reward_kl"] = "reward_kl"
    prompts: PromptsRef = Field(description="what is asked")
    reward: ScorerRef = Field(description="the reward model that scores answers")
    samples: int = Field(default=4, ge=1, description="answers of each model to each prompt")
    best_of: int = Field(default=16, ge=1, description="answers of the baseline to each prompt, and the largest n")
    temperature: float = Field(
        default=1.0, gt=0, le=2, description="of the draw, and of the KL; use that of the policy's training"
    )
    max_tokens: int = Field(default=256, ge=1, description="most tokens of an answer, terminator included")
    seed: int | None = Field(default=None, ge=0, description="another seed, another answer")


def measures(settings: RewardKl) -> Sequence[Ref]:
    return [settings.prompts]


def estimate(settings: RewardKl, asked: Asked) -> Cost:
    """The baseline answers `best_of` times, the others `samples` times; log-probabilities are computed twice."""
    came = asked.inputs[settings.prompts]
    if came.records is None:
        return Cost(unknown=[came.why])
    others = len(asked.subjects) - 1
    samples = came.records * (settings.best_of + others * settings.samples)
    return Cost(samples=samples, sampled=samples * settings.max_tokens, calls=came.records * len(asked.subjects))


BENCHMARK = BenchmarkType(
    "reward_kl",
    RewardKl,
    work="togi.stages.evaluation.benchmarks.reward_kl_work",
    reasons=("too_long", "no_score"),
    estimate=estimate,
    measures=measures,
)
