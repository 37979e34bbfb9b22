"""`diversify`: remove near-duplicates, then choose the most different ones (docs/methods.md)."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import EmbedderRef, PackageName, RecipePath, RecordsRef, Ref, Settings
from togi.data.compared import Part
from togi.stages.base import PassingSettings, StageType, passes_on
from togi.stages.cost import Cost, Inputs, passing_on

REASONS = ("near_duplicate_ngrams", "near_duplicate_embedding", "over_budget")
"""What a record is dropped for."""


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


class Diversify(PassingSettings):
    """Near-duplicates by character n-grams and by embeddings go; then a budget of records that cover the rest.

    `k_centre` always takes the record farthest from those taken, and so finds the edges of the data, outliers too.
    `facility_location` takes what represents most others best, and so stays with the bulk. The records come out in the
    order in which they were taken.
    """

    of_data: ClassVar[str | None] = "prompts"

    type: Literal["diversify"] = "diversify"
    input: RecordsRef
    keep: int = Field(ge=1, description="budget: records to select")
    method: Literal["k_centre", "facility_location"] = "k_centre"
    neighbours: int = Field(
        default=64, ge=2, le=512, description="facility_location: how many others a record can represent"
    )
    by: str | None = Field(
        default=None,
        min_length=1,
        description="the score, or the number in an extra column, whose best record of near-duplicates stays; the "
        "selection begins with the best of all",
    )
    part: Part = Field(default="question", description="what is compared: all turns, the user's, or the answer")
    max_jaccard: float = Field(default=0.6, gt=0, le=1, description="character n-grams: more alike than this is a copy")
    max_cosine: float = Field(
        default=0.9, gt=0, le=1, description="embeddings: more alike than this (strictly) is a copy"
    )
    ngram: int = Field(default=4, ge=1, le=16, description="characters of one n-gram")
    embedder: EmbedderRef | Embedder | None = Field(
        default=None,
        description="what says how alike two texts are, a model of kind: embedder; character n-grams when absent",
    )

    def limited(self, rows: int) -> Self:
        return self.model_copy(update={"keep": min(self.keep, max(1, rows // 2))})

    @property
    def passes(self) -> Sequence[Ref]:
        return (self.input,)

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        if self.method != "facility_location" and self.neighbours != type(self).model_fields["neighbours"].default:
            raise ValueError(f"neighbours is read with method: facility_location, found {self.method}; remove it")
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
    version=3,
    reasons=REASONS,
    chooses=lambda settings: settings.input,
    conserves=True,
    estimate=estimate,
)
