"""Declares the benchmark `diversity`: how much a model's answers differ from one another and from other models'
answers."""

from typing import Literal

from pydantic import Field

from togi.core.settings import EmbedderRef
from togi.stages.bounds import REQUEST, ask_scores
from togi.stages.cost import Cost
from togi.stages.evaluation.benchmarks.base import Asked, BenchmarkType
from togi.stages.evaluation.benchmarks.prompted import PromptedSettings, estimate, measures


class Diversity(PromptedSettings):
    """Measures how much one model's answers differ, to one prompt and across prompts, and how similar the answers of
    two models are. A prompt with a failed answer is left out for all models."""

    type: Literal["diversity"] = "diversity"
    samples: int = Field(default=4, ge=1, description="answers of each model to each prompt")
    embedder: EmbedderRef | None = Field(
        default=None, description="sentence embedder for cosine similarity; hashed character n-grams when absent"
    )
    language: Literal["en", "ja", "ru"] = Field(
        default="en", description="decides the units of n-grams: words or characters"
    )
    cut: bool = Field(
        default=True,
        description="cut all models' answers to a prompt to the shortest of them, so that length has no influence",
    )
    draw: int = Field(default=512, ge=3, description="maximum answers that self-BLEU across prompts reads")
    question: str = Field(
        default="", description="column that names the question, if several prompts are wordings of the same question"
    )


def cost(settings: Diversity, asked: Asked) -> Cost:
    """An embedder reads every answer."""
    found, came = estimate(settings, asked), asked.inputs[settings.prompts]
    if settings.embedder is not None and came.records is not None:
        texts = len(asked.subjects) * came.records * settings.samples
        ask_scores(found, settings.embedder.name, texts, texts * (settings.max_tokens + REQUEST))
    return found


BENCHMARK = BenchmarkType(
    "diversity",
    Diversity,
    work="togi.stages.evaluation.benchmarks.diversity_work",
    reasons=("no_answer", "empty"),
    estimate=cost,
    measures=measures,
)
