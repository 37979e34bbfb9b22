"""Settings of the loss of `train.grpo`."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.settings import Settings
from togi.objectives.rules import policy_problem
from togi.stages.training.correction import Correction

ELSEWHERE = {
    "gspo": "type: grpo with level: sequence, eps: 3.0e-4 and eps_high: 4.0e-4",
    "opsm": "a mask that works with every type: off_policy_threshold",
}


class Loss(Settings):
    """The loss variant and its constants."""

    type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo"] = "dapo"
    level: Literal["token", "sequence"] = Field(
        default="token",
        description="level of the ratio. sequence: GSPO, with type: grpo, eps: 3.0e-4 and eps_high: 4.0e-4; luspo "
        "needs it",
    )
    eps: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="the ratio is clipped to [1 - eps, 1 + eps_high]; 0.2 when absent; "
        "GSPO: 3.0e-4, because the ratio of a whole answer is much closer to 1",
    )
    eps_high: float | None = Field(default=None, gt=0, description="eps when absent; DAPO: 0.28; GSPO: 4.0e-4")
    delta: float | None = Field(
        default=None, gt=1, description="two-sided clip: largest ratio of tokens with a negative advantage"
    )
    max_weight: float | None = Field(default=None, gt=0, description="cispo: largest ratio; 5 when absent")
    beta: float = Field(
        default=0.0,
        ge=0,
        description="weight of the KL to the initial model, which is computed with the adapter switched off, or "
        "without lora by a frozen copy",
    )
    kl_bias_correction: bool = Field(default=True, description="weight the KL term by the ratio")
    reference_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the frozen copy that beta needs when there is no adapter"
    )
    sampler_correction: Correction | None = Field(
        default=None,
        description="importance weights that correct for a sampler that computes other probabilities than the trainer; "
        "the mismatch is logged in any case",
    )
    off_policy_threshold: float | None = Field(
        default=None,
        gt=0,
        description="an answer with a negative advantage carries no loss if its log-probability fell by more than this "
        "many nats per token (DeepSeek-V3.2)",
    )

    @property
    def clip(self) -> float:
        """`eps`, or its default."""
        return 0.2 if self.eps is None else self.eps

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ELSEWHERE:
            raise ValueError(f"{value!r} is not a type here; it is {ELSEWHERE[value]}")
        return value

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        """A setting that the loss does not read is a mistake in the recipe."""
        wrong = policy_problem(
            self.type,
            level=self.level,
            max_weight=self.max_weight,
            correction=self.sampler_correction,
            eps=self.eps,
            eps_high=self.eps_high,
            delta=self.delta,
        )
        if wrong:
            raise ValueError(wrong)
        narrow = self.reference_dtype != "float32"
        if self.beta == 0 and (narrow or not self.kl_bias_correction):
            name = "reference_dtype" if narrow else "kl_bias_correction"
            raise ValueError(
                f"{name} belongs to the KL term, which beta: 0 switches off; set beta, or remove the setting"
            )
        return self

    @model_validator(mode="after")
    def _delta_reaches_further(self) -> Self:
        high = 1 + (self.clip if self.eps_high is None else self.eps_high)
        if self.delta is not None and self.delta <= high:
            raise ValueError(
                f"delta is {self.delta}, but the ratio is already clipped at {high:g}; choose a larger delta"
            )
        return self
