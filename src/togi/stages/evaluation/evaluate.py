"""`evaluate`: base and policy on the same unseen prompts, with paired intervals."""

from typing import Literal

from pydantic import Field

from togi.core.sampling import Sampling
from togi.core.settings import ModelRef, PromptsRef, ScorerRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs
from togi.stages.failures import FailureSettings

REASONS = ("failed",)
"""What a prompt is left out for: one of its answers did not come."""


class Evaluate(StageSettings, FailureSettings, Sampling):
    """Terminator rate, reward, held-out reward, length and diversity: base against policy, prompt by prompt.

    A prompt to which an answer failed is left out for both models, and counted.
    """

    type: Literal["evaluate"] = "evaluate"
    base: ModelRef
    policy: ModelRef
    prompts: PromptsRef
    reward: ScorerRef | None = Field(default=None, description="the reward model that the policy was trained on")
    held_out: ScorerRef | None = Field(default=None, description="a reward model that was never optimised against")
    samples: int = Field(default=1, ge=1, description="answers of each model to each prompt")
    temperature: float = Field(default=1.0, ge=0, le=2, description="use the policy's training temperature")
    max_tokens: int = Field(default=64, ge=1, description="most tokens of an answer, terminator included")
    language: Literal["en", "ja", "ru"] = Field(default="en", description="units of the diversity measures")
    bootstrap: int = Field(default=2000, ge=100, description="resamplings of the prompts")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of the intervals")
    batch_prompts: int = Field(default=16, ge=1, description="prompts in one unit of work")
    show: int = Field(default=12, ge=0, description="prompts whose answers stand in the report")


def estimate(settings: Evaluate, inputs: Inputs) -> Cost:
    """Two models answer each prompt."""
    came = inputs[settings.prompts]
    if came.records is None:
        return Cost(answer=settings.max_tokens, unknown=[came.why])
    samples, answer = 2 * settings.samples * came.records, settings.max_tokens
    return Cost(samples=samples, sampled=samples * answer, answer=answer, calls=2 * came.records)


STAGE = StageType(
    "evaluate",
    Evaluate,
    outputs=gives("tables"),
    work="togi.stages.evaluation.evaluate_work",
    version=7,
    reasons=REASONS,
    estimate=estimate,
    measures=lambda settings: [settings.prompts],
)
