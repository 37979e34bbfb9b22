"""`diversify`: remove near-duplicates, then choose the most different ones (docs/methods.md)."""

from typing import Literal

from pydantic import Field

from togi.core.settings import PromptsRef
from togi.stages.base import StageSettings, StageType


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
    embedder: str | None = Field(
        default=None, description="a package or folder of a sentence embedder; character n-gram features when absent"
    )


STAGE = StageType("diversify", Diversify, yields="prompts", work="togi.stages.diversify_work")
