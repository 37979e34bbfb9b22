"""Declares the stage `diversify`: removes near-duplicates, then selects records that differ as much as possible
(docs/methods.md)."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import EmbedderRef, PackageName, RecipePath, RecordsRef, Ref, Settings
from togi.data.compared import Part
from togi.stages.base import PassingSettings, StageType, passes_on
from togi.stages.cost import Cost, Inputs, passing_on

REASONS = ("nothing_to_compare", "near_duplicate_ngrams", "near_duplicate_embedding", "over_budget")
"""Drop reasons of a record."""


class Embedder(Settings):
    """A sentence embedder from a package or a folder: an encoder with mean pooling over its tokens."""

    package: PackageName | None = Field(default=None, description="Python package that contains the model")
    path: RecipePath | None = Field(default=None, description="folder of the model")
    prefix: str = Field(default="", description='put before every text; multilingual E5 expects "query: "')

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.package is None) == (self.path is None):
            raise ValueError("an embedder needs either a package or a path: set exactly one of them")
        return self


class Diversify(PassingSettings):
    """Removes near-duplicates by character n-grams and by embeddings, then selects a budget of records that cover the
    rest.

    `k_centre` always selects the record farthest from those already selected, so it covers the edges of the data,
    outliers included. `facility_location` selects the records that best represent the others, so it stays with the bulk
    of the data. The output keeps the order of selection. A record that lacks the `part` to compare, such as a prompt
    without a reference answer, is dropped: nothing tells how it differs from others.
    """

    of_data: ClassVar[str | None] = "prompts"

    type: Literal["diversify"] = "diversify"
    input: RecordsRef
    keep: int = Field(ge=1, description="budget: records to select")
    method: Literal["k_centre", "facility_location"] = "k_centre"
    neighbours: int = Field(
        default=64,
        ge=2,
        le=512,
        description="facility_location: maximum number of others that one record can represent",
    )
    by: str | None = Field(
        default=None,
        min_length=1,
        description="a score, or a numeric extra column: of near-duplicates the record with the highest value "
        "stays, and the selection starts with the highest of all",
    )
    part: Part = Field(default="question", description="texts to compare: all turns, the user's turns, or the answer")
    max_jaccard: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="character n-grams: a record with a similarity above this is a near-duplicate",
    )
    max_cosine: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="embeddings: a record with a similarity strictly above this is a near-duplicate",
    )
    ngram: int = Field(default=4, ge=1, le=16, description="length of one n-gram, in characters")
    embedder: EmbedderRef | Embedder | None = Field(
        default=None,
        description="embedder that measures how similar two texts are, a model of kind: embedder; character "
        "n-grams when absent",
    )

    def limited(self, rows: int) -> Self:
        return self.model_copy(update={"keep": min(self.keep, max(1, rows // 2))})

    @property
    def passes(self) -> Sequence[Ref]:
        return (self.input,)

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        if self.method != "facility_location" and self.neighbours != type(self).model_fields["neighbours"].default:
            raise ValueError(f"neighbours is only read with method: facility_location, found {self.method}; remove it")
        return self


def estimate(settings: Diversify, inputs: Inputs) -> Cost:
    """At most the budget."""
    came = inputs[settings.input]
    return passing_on(came, settings.keep if came.records is None else min(came.records, settings.keep))


STAGE = StageType(
    "diversify",
    Diversify,
    outputs=passes_on(),
    work="togi.stages.data.diversify_work",
    version=5,
    reasons=REASONS,
    chooses=lambda settings: settings.input,
    conserves=True,
    computes=lambda settings: True,  # similarities, also of n-grams
    estimate=estimate,
)
