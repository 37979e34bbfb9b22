"""Importance weights for samples of a policy that another engine, or an earlier policy, has sampled."""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import Settings


class Correction(Settings):
    """Importance weights p_trainer / p_sampler, for a sampler whose probabilities differ from the trainer's."""

    level: Literal["token", "sequence"] = Field(default="sequence", description="one weight per token or per answer")
    mode: Literal["truncate", "mask"] = Field(
        default="mask", description="weights outside floor to cap are clamped (truncate) or set to 0 (mask)"
    )
    cap: float = Field(default=3.0, gt=0, description="largest weight")
    floor: float | None = Field(default=None, gt=0, description="smallest weight; none when absent")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.floor is not None and self.floor >= self.cap:
            raise ValueError(f"floor is {self.floor} and cap is {self.cap}: floor must be below cap")
        return self
