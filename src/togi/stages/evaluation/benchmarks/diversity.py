"""`diversity`: how much a model's answers differ from one another, and from those of the other models."""

from typing import Literal

from pydantic import Field

from togi.core.settings import EmbedderRef
from togi.stages.evaluation.benchmarks.base import BenchmarkType
from togi.stages.evaluation.benchmarks.prompted import PromptedSettings, estimate, measures


class Diversity(PromptedSettings):
    """How much answers differ: those of one model to one prompt, and to all prompts; and how alike the answers of two
    models are. A prompt to which one answer failed is left out for all models."""

    type: Literal["diversity"] = "diversity"
    samples: int = Field(default=4, ge=1, description="answers of each model to each prompt")
    embedder: EmbedderRef | None = Field(
        default=None, description="sentence embeddings for cosines; hashed runs of characters when absent"
    )
    language: Literal["en", "ja", "ru"] = Field(default="en", description="decides the units: words, or characters")
    cut: bool = Field(
        default=True,
        description="cut the answers of all models to the shortest of them, so that length decides nothing",
    )
    draw: int = Field(default=512, ge=3, description="answers at most that self-BLEU across prompts reads")
    question: str = Field(
        default="", description="column that names the question, where several prompts are wordings of one"
    )


BENCHMARK = BenchmarkType(
    "diversity",
    Diversity,
    work="togi.stages.evaluation.benchmarks.diversity_work",
    reasons=("no_answer", "empty"),
    estimate=estimate,
    measures=measures,
)
