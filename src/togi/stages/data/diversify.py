"""`diversify`: remove near-duplicates, then choose the most different ones (docs/methods.md)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import EmbedderRef, PackageName, PromptsRef, RecipePath, Settings
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs, passing_on

REASONS = ("near_duplicate_ngrams", "near_duplicate_embedding", "over_budget")
"""What a prompt is dropped for."""


class Embedder(Settings):
    """A sentence embedder: an encoder whose tokens are averaged, from a package or a folder."""

    package: PackageName | None = Field(default=None, description="a Python package that holds it")
    path: RecipePath | None = Field(default=None, description="its folder")
    prefix: str = Field(default="", description='put before every text; multilingual E5 wants "query: "')

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.package is None) == (self.path is None):
            raise ValueError("an embedder comes from a package or from a path: name one of them")
        return self


class Diversify(StageSettings):
    """Near-duplicates by character n-grams and by embeddings go; then farthest-point selection to a budget."""

    type: Literal["diversify"] = "diversify"
    input: PromptsRef
    keep: int = Field(ge=1, description="budget: records to select")
    max_jaccard: float = Field(default=0.6, gt=0, le=1, description="character n-grams: more alike than this is a copy")
    max_cosine: float = Field(
        default=0.9, gt=0, le=1, description="embeddings: more alike than this (strictly) is a copy"
    )
    ngram: int = Field(default=4, ge=1, le=16, description="characters of one n-gram")
    embedder: EmbedderRef | Embedder | None = Field(
        default=None,
        description="what says how alike two texts are, a model of kind: embedder; character n-grams when absent",
    )


def estimate(settings: Diversify, inputs: Inputs) -> Cost:
    """At most the budget."""
    came = inputs[settings.input]
    return passing_on(came, settings.keep if came.records is None else min(came.records, settings.keep))


STAGE = StageType(
    "diversify",
    Diversify,
    outputs=gives("prompts"),
    work="togi.stages.data.diversify_work",
    version=2,
    reasons=REASONS,
    chooses=lambda settings: settings.input,
    estimate=estimate,
)
