"""Shared by benchmarks in which every model answers the same prompts."""

from collections.abc import Sequence

from pydantic import Field

from togi.core.sampling import Sampling
from togi.core.settings import PromptsRef, Ref
from togi.stages.bounds import read
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkSettings


class PromptedSettings(BenchmarkSettings, Sampling):
    """Settings of such a benchmark: the prompts, and the answers to each."""

    prompts: PromptsRef = Field(description="prompts to answer")
    samples: int = Field(default=1, ge=1, description="answers of each model to each prompt")


def measures(settings: PromptedSettings) -> Sequence[Ref]:
    """The prompts."""
    return [settings.prompts]


def estimate(settings: PromptedSettings, asked: Asked) -> Cost:
    """Every model answers each prompt."""
    came = asked.inputs[settings.prompts]
    if came.records is None:
        return Cost(unknown=[came.why])
    cost, answers = Cost(), came.records * settings.samples
    for ref in asked.subjects:
        cost.ask(ref.name, came.records, read(came, came.records), answers * settings.max_tokens, settings.samples)
    cost.samples = len(asked.subjects) * answers
    cost.sampled = cost.samples * settings.max_tokens
    return cost
