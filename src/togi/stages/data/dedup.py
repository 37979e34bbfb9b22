"""Declares the stage `dedup`: keeps one of several similar records (docs/methods.md)."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import EmbedderRef, RecordsRef, Ref
from togi.data.compared import Part
from togi.stages.base import PassingSettings, StageType, passes_on, refuse_unread
from togi.stages.cost import at_most_the_input

REASONS = ("copy", "near_copy")
"""Drop reasons of a record: its text equals that of a kept record, or nearly does."""

THRESHOLDS = {"minhash": 0.7, "embeddings": 0.9}
"""Default similarity threshold by method; a record above it is a copy."""


class Dedup(PassingSettings):
    """Keeps one of several similar records: the first, or the one with the best score.

    `exact` compares whole texts, ignoring case, punctuation and spacing; symbols count (`C#` is not `C++`). `minhash`
    compares sets of character n-grams (Jaccard similarity), `embeddings` compares by cosine similarity. The output
    `.matches` names the kept record that each dropped one resembles. A record without the part to compare, such as a
    prompt without an answer, stays.
    """

    type: Literal["dedup"] = "dedup"
    input: RecordsRef
    method: Literal["exact", "minhash", "embeddings"] = "minhash"
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="a record with a similarity strictly above this is a copy; when absent: 0.7 for minhash, 0.9 "
        "for embeddings",
    )
    part: Part = Field(default="whole", description="texts to compare: all turns, the user's turns, or the answer")
    ngram: int = Field(
        default=5, ge=1, le=64, description="minhash: length of one n-gram in characters, for all languages"
    )
    embedder: EmbedderRef | None = Field(
        default=None, description="embeddings: a model of kind: embedder; character n-grams when absent"
    )
    by: str | None = Field(
        default=None,
        min_length=1,
        description="a score, or a numeric extra column: the record with the highest value stays",
    )

    @property
    def passes(self) -> Sequence[Ref]:
        return (self.input,)

    @property
    def limit(self) -> float:
        """Similarity threshold; a record above it is a copy."""
        return THRESHOLDS[self.method] if self.threshold is None else self.threshold

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        read = {"threshold": ("minhash", "embeddings"), "ngram": ("minhash",), "embedder": ("embeddings",)}
        refuse_unread(self, read)
        return self


STAGE = StageType(
    "dedup",
    Dedup,
    outputs=passes_on(matches="matches"),
    work="togi.stages.data.dedup_work",
    version=2,
    reasons=REASONS,
    chooses=lambda settings: settings.input,
    conserves=True,
    computes=lambda settings: settings.method == "embeddings",
    estimate=at_most_the_input,
)
