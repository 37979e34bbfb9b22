"""Settings that training on preference pairs shares: which pairs, how long, and the guard over the chosen answers."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import APART, PairsRef, refs_of
from togi.stages.cost import Cost, Inputs
from togi.stages.training.chosen_guard import FallingChosen
from togi.stages.training.estimates import fixed_cost
from togi.stages.training.optimisation import FixedTraining, Share

REASONS = ("empty_answer", "equal_answers", "nothing_scored", "two_bos", "too_long", "not_rendered")
"""What a pair is dropped for."""


class PreferenceTraining(FixedTraining):
    """Training on pairs. A pair is one tree: its prompt is computed once, and it is never cut over micro-batches."""

    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    pairs: PairsRef | tuple[PairsRef, ...] = Field(description="preference pairs, of one stage or of several")
    validation: PairsRef | Share | None = Field(
        default=None, description="pairs, or the share of the prompts to keep out of training", json_schema_extra=APART
    )
    max_length: int | None = Field(
        default=None, ge=8, description="tokens of a prompt with its longer answer; absent: the model's context"
    )
    overflow: Literal["drop", "error", "truncate"] = Field(
        default="drop",
        description="what a longer pair does: drop (counted), error, or truncate: the prompt to its last "
        "max_prompt_length tokens, then the answers to the rest of max_length (counted)",
    )
    max_prompt_length: int | None = Field(
        default=None, ge=1, description="tokens, for overflow: truncate; half of max_length when absent"
    )
    on_bad_pair: Literal["drop", "error"] = Field(
        default="drop", description="what a pair with an empty answer or two equal ones does: drop (counted) or error"
    )
    falling_chosen: FallingChosen | None = Field(
        default=FallingChosen(), description="alarm when the chosen answers become less likely; null: none"
    )

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> Self:
        if self.max_prompt_length is None:
            return self
        if self.overflow != "truncate":
            raise ValueError(f"max_prompt_length is read under overflow: truncate alone, found {self.overflow!r}")
        if self.max_length is not None and self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length is {self.max_prompt_length}, which leaves no token of max_length {self.max_length} "
                "to the answers: lower it"
            )
        return self


def pairs_cost(settings: PreferenceTraining, inputs: Inputs) -> Cost:
    """What a training on pairs takes."""
    return fixed_cost(settings, inputs, refs_of(settings.pairs), sides=2)
