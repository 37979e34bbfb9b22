"""`calibrate`: how far a judge's verdicts can be trusted, by what people said of some of them (docs/judges.md)."""

from typing import Literal

from pydantic import Field

from togi.core.settings import PairsRef, SamplesRef, VerdictsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs

REASONS = ("not_judged",)
"""A label is dropped where the judge gave no readable verdict on the same two answers."""


class Calibrate(StageSettings):
    """A judge against people: agreement, kappa, its leanings to a place, to length and to its own answers, and each
    model's win rate as the judge has it, as people have it, and corrected for the judge's errors."""

    type: Literal["calibrate"] = "calibrate"
    verdicts: VerdictsRef = Field(description="what a judge said: `$stage.verdicts` of a `label`")
    samples: SamplesRef = Field(description="the answers that it judged")
    labels: PairsRef = Field(
        description="what people prefer, of some of these answers: a pair with margin 0 is a tie, and a pair that "
        "stands several times has several annotators"
    )
    own: tuple[str, ...] = Field(
        default=(), description="models whose answers are the judge's own or its family's; else those with its name"
    )
    bootstrap: int = Field(default=2000, ge=100, description="resamplings of the prompts")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of the intervals")


def estimate(settings: Calibrate, inputs: Inputs) -> Cost:
    """No model is asked."""
    return Cost()


STAGE = StageType(
    "calibrate",
    Calibrate,
    outputs=gives("tables"),
    work="togi.stages.evaluation.calibrate_work",
    reasons=REASONS,
    estimate=estimate,
)
