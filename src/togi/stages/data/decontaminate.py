"""`decontaminate`: what stands in an evaluation set leaves (docs/methods.md)."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import APART, EmbedderRef, RecordsRef, Ref, refs_of
from togi.data.compared import Part
from togi.stages.base import Around, PassingSettings, StageType, passes_on
from togi.stages.cost import at_most_the_input

REASONS = ("in_evaluation_set", "like_evaluation_set")
"""What a record is dropped for: it holds n-grams of an evaluation text, or its embedding is close to that of one."""


class Decontaminate(PassingSettings):
    """Records that hold a text of an evaluation set leave; `.matches` shows what matched where.

    Evaluation texts are the questions of the sets in `against`; without it, of all sets on which a stage of the recipe
    measures models. A record leaves if it holds at least `share` of the n-grams of one of them: of `words` words, or in
    languages without spaces of `characters` characters. A shorter text has to be equal to a turn of the record.
    """

    type: Literal["decontaminate"] = "decontaminate"
    input: RecordsRef
    against: RecordsRef | tuple[RecordsRef, ...] | None = Field(
        default=None,
        description="evaluation sets; all that the recipe's evaluations read when absent",
        json_schema_extra=APART,
    )
    words: int = Field(default=8, ge=2, le=64, description="words of one n-gram, where spaces stand between words")
    characters: int = Field(default=16, ge=4, le=256, description="characters of one n-gram, in other languages")
    share: float = Field(
        default=0.5, gt=0, le=1, description="share of an evaluation text's n-grams that makes a record leave"
    )
    part: Part = Field(default="whole", description="where it is looked for: all turns, the user's, or the answer")
    embedder: EmbedderRef | None = Field(
        default=None, description="a model of kind: embedder that also compares the questions by meaning"
    )
    max_cosine: float = Field(
        default=0.95, gt=0, le=1, description="embedder: a question more alike than this (strictly) leaves"
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
                "no stage of the recipe measures models, so there is nothing to hold the records against: name the "
                "sets under `against`"
            )
        return filled.model_copy(update={"against": tuple(RecordsRef(ref) for ref in sets)})

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        if self.embedder is None and self.max_cosine != type(self).model_fields["max_cosine"].default:
            raise ValueError("max_cosine is read with an embedder alone: name one, or remove it")
        return self

    @model_validator(mode="after")
    def _against_others(self) -> Self:
        sets = [] if self.against is None else refs_of(self.against)
        if self.input in sets:
            raise ValueError(f"against: {self.input} is the input itself; everything would leave")
        if self.against is not None and not sets:
            raise ValueError("against: it is empty; name a set, or remove it for all that the recipe measures on")
        return self


STAGE = StageType(
    "decontaminate",
    Decontaminate,
    outputs=passes_on(matches="matches"),
    work="togi.stages.data.decontaminate_work",
    reasons=REASONS,
    chooses=lambda settings: settings.input,
    conserves=True,
    estimate=at_most_the_input,
)
