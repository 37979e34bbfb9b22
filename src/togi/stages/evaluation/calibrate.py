"""Declares the stage `calibrate`: how far a judge's verdicts can be trusted, measured with human labels
(docs/judges.md)."""

from typing import Literal

from pydantic import Field

from togi.core.settings import PairsRef, SamplesRef, VerdictsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs

REASONS = ("not_judged",)
"""A label is dropped if the judge gave no readable verdict on the same two answers."""


class Calibrate(StageSettings):
    """Compares a judge with people: agreement, kappa, the judge's biases (position, length, its own answers), and each
    model's win rate by the judge, by people, and corrected for the judge's errors."""

    type: Literal["calibrate"] = "calibrate"
    verdicts: VerdictsRef = Field(description="the judge's verdicts: `$stage.verdicts` of a `label` stage")
    samples: SamplesRef = Field(description="the answers that the judge compared or graded")
    labels: PairsRef = Field(
        description="human preferences for some of these answers: a pair with margin 0 is a tie; a pair that occurs "
        "several times has several annotators"
    )
    own: tuple[str, ...] = Field(
        default=(),
        description="models whose answers count as the judge's own, such as its family; when absent, the model with "
        "the judge's name",
    )
    bootstrap: int = Field(default=2000, ge=100, description="bootstrap resamples of the prompts")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="confidence level of the intervals")


def estimate(settings: Calibrate, inputs: Inputs) -> Cost:
    """Asks no model."""
    return Cost()


STAGE = StageType(
    "calibrate",
    Calibrate,
    outputs=gives("tables"),
    work="togi.stages.evaluation.calibrate_work",
    version=2,
    reasons=REASONS,
    estimate=estimate,
    computes=lambda settings: True,  # statistics
)
