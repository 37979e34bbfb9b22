"""Declares the stage `decontaminate`: drops records that contain evaluation data (docs/methods.md)."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import APART, EmbedderRef, RecordsRef, Ref, refs_of
from togi.data.compared import Part
from togi.stages.base import Around, PassingSettings, RowSettings, StageType, passes_on
from togi.stages.cost import at_most_the_input

REASONS = ("in_evaluation_set", "like_evaluation_set")
"""Drop reasons of a record: it contains n-grams of an evaluation text, or its embedding is close to that of one."""


class Decontaminate(PassingSettings, RowSettings):
    """Drops records that contain a text of an evaluation set; the output `.matches` shows what matched and where.

    Evaluation texts are the questions of the sets in `against`. When absent, these are all sets on which a stage of the
    recipe measures models. A record is dropped if it contains at least `share` of the n-grams of one evaluation text.
    An n-gram has `words` words or, in languages without spaces, `characters` characters. An evaluation text shorter
    than one n-gram must equal a turn of the record.
    """

    type: Literal["decontaminate"] = "decontaminate"
    input: RecordsRef
    against: RecordsRef | tuple[RecordsRef, ...] | None = Field(
        default=None,
        description="evaluation sets; all sets that the recipe's evaluations read when absent",
        json_schema_extra=APART,
    )
    words: int = Field(default=8, ge=2, le=64, description="words per n-gram, for languages with spaces between words")
    characters: int = Field(default=16, ge=4, le=256, description="characters per n-gram, for other languages")
    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="drop a record that contains at least this share of an evaluation text's n-grams",
    )
    part: Part = Field(default="whole", description="texts to search: all turns, the user's turns, or the answer")
    embedder: EmbedderRef | None = Field(
        default=None, description="a model of kind: embedder; also compares the questions by meaning"
    )
    max_cosine: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="embedder: drop a record whose question has a similarity strictly above this",
    )

    @property
    def passes(self) -> Sequence[Ref]:
        return (self.input,)

    def within(self, around: Around) -> Self:
        filled = super().within(around)
        if self.against is not None:
            return filled
        sets = around.measured()
        if not sets:
            raise ValueError(
                "no stage of the recipe measures models, so there are no evaluation sets to compare with: name them "
                "under `against`"
            )
        return filled.model_copy(update={"against": tuple(RecordsRef(ref) for ref in sets)})

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        if self.embedder is None and self.max_cosine != type(self).model_fields["max_cosine"].default:
            raise ValueError("max_cosine is only read with an embedder: name one, or remove it")
        return self

    @model_validator(mode="after")
    def _against_others(self) -> Self:
        sets = [] if self.against is None else refs_of(self.against)
        if self.input in sets:
            raise ValueError(f"against: {self.input} is the input itself; every record would be dropped")
        if self.against is not None and not sets:
            raise ValueError("against is empty: name a set, or remove it to use all sets that the recipe measures on")
        return self


STAGE = StageType(
    "decontaminate",
    Decontaminate,
    outputs=passes_on(matches="matches"),
    work="togi.stages.data.decontaminate_work",
    rows="togi.stages.data.decontaminate_rows",
    reasons=REASONS,
    chooses=lambda settings: settings.input,
    conserves=True,
    cleans=True,
    estimate=at_most_the_input,
)
