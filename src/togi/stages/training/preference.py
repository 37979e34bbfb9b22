"""Settings shared by all training on preference pairs: the pairs, their length, and the guard on chosen answers."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import APART, PairsRef, refs_of
from togi.stages.cost import Cost, Inputs
from togi.stages.training.chosen_guard import FallingChosen
from togi.stages.training.estimates import fixed_cost
from togi.stages.training.optimisation import FixedTraining, Share

REASONS = ("empty_answer", "equal_answers", "nothing_scored", "two_bos", "too_long", "not_rendered")
"""Reasons for which a pair is dropped."""


class PreferenceTraining(FixedTraining):
    """Training on pairs. A pair is one tree: its prompt is computed once, and it is never split over micro-batches."""

    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    pairs: PairsRef | tuple[PairsRef, ...] = Field(description="preference pairs, from one stage or several")
    validation: PairsRef | Share | None = Field(
        default=None, description="pairs, or the share of the prompts to keep out of training", json_schema_extra=APART
    )
    max_length: int | None = Field(
        default=None, ge=8, description="maximum tokens of a prompt with its longer answer; absent: the model's context"
    )
    overflow: Literal["drop", "error", "truncate"] = Field(
        default="drop",
        description="treatment of longer pairs: drop (counted), error, or truncate (counted): the prompt to its last "
        "max_prompt_length tokens, then the answers to the rest of max_length",
    )
    max_prompt_length: int | None = Field(
        default=None, ge=1, description="tokens of the prompt with overflow: truncate; half of max_length when absent"
    )
    on_bad_pair: Literal["drop", "error"] = Field(
        default="drop", description="treatment of pairs with an empty answer or two equal ones: drop (counted) or error"
    )
    falling_chosen: FallingChosen | None = Field(
        default=FallingChosen(), description="alarm when chosen answers become less likely; null: off"
    )

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> Self:
        if self.max_prompt_length is None:
            return self
        if self.overflow != "truncate":
            raise ValueError(f"max_prompt_length applies only to overflow: truncate, found {self.overflow!r}")
        if self.max_length is not None and self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length is {self.max_prompt_length}, which leaves none of the {self.max_length} tokens of "
                "max_length for the answers: lower it"
            )
        return self


def pairs_cost(settings: PreferenceTraining, inputs: Inputs) -> Cost:
    """The cost of training on pairs."""
    return fixed_cost(settings, inputs, refs_of(settings.pairs), sides=2)
