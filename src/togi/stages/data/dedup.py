"""`dedup`: of records that are alike one stays (docs/methods.md)."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import EmbedderRef, RecordsRef, Ref
from togi.data.compared import Part
from togi.stages.base import PassingSettings, StageType, passes_on
from togi.stages.cost import at_most_the_input

REASONS = ("copy", "near_copy")
"""What a record is dropped for: its text is that of one that stays, or almost."""

THRESHOLDS = {"minhash": 0.7, "embeddings": 0.9}
"""More alike than this is a copy, by method."""


class Dedup(PassingSettings):
    """Of records that are alike one stays: the first, or the one with the best score.

    `exact` compares whole texts, but for case, punctuation and spacing. `minhash` compares the sets of character
    n-grams (Jaccard similarity), `embeddings` the cosine. `.matches` tells which record each dropped one is like.
    """

    type: Literal["dedup"] = "dedup"
    input: RecordsRef
    method: Literal["exact", "minhash", "embeddings"] = "minhash"
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="more alike than this (strictly) is a copy; 0.7 for minhash, 0.9 for embeddings when absent",
    )
    part: Part = Field(default="whole", description="what is compared: all turns, the user's, or the answer")
    ngram: int = Field(default=5, ge=1, le=64, description="minhash: characters of one n-gram, in every language")
    embedder: EmbedderRef | None = Field(
        default=None, description="embeddings: a model of kind: embedder; character n-grams when absent"
    )
    by: str | None = Field(
        default=None, min_length=1, description="the score, or the number in an extra column, whose best record stays"
    )

    @property
    def passes(self) -> Sequence[Ref]:
        return (self.input,)

    @property
    def limit(self) -> float:
        """More alike than this is a copy."""
        return THRESHOLDS[self.method] if self.threshold is None else self.threshold

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        read = {"threshold": ("minhash", "embeddings"), "ngram": ("minhash",), "embedder": ("embeddings",)}
        for name, methods in read.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.method not in methods:
                raise ValueError(f"{name} is read with method: {' or '.join(methods)}, found {self.method}; remove it")
        return self


STAGE = StageType(
    "dedup",
    Dedup,
    outputs=passes_on(matches="matches"),
    work="togi.stages.data.dedup_work",
    reasons=REASONS,
    chooses=lambda settings: settings.input,
    conserves=True,
    estimate=at_most_the_input,
)
