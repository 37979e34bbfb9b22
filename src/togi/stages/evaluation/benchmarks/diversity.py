"""`diversity`: how much a model's answers differ from one another and from other models' answers."""

from typing import Literal

from pydantic import Field

from togi.core.settings import EmbedderRef
from togi.stages.evaluation.benchmarks.base import BenchmarkType
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


BENCHMARK = BenchmarkType(
    "diversity",
    Diversity,
    work="togi.stages.evaluation.benchmarks.diversity_work",
    reasons=("no_answer", "empty"),
    estimate=estimate,
    measures=measures,
)
