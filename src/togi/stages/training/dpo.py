"""Declares the stage `train.dpo`: trains a policy on preference pairs, close to its initial model.

Source: arXiv 2305.18290 (docs/methods.md).
"""

from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import Ref, refs_of
from togi.objectives.rules import dpo_problem
from togi.stages.base import StageType, gives
from togi.stages.cost import Cost, Inputs, count
from togi.stages.training.job import training_job
from togi.stages.training.preference import REASONS, PreferenceTraining, pairs_cost
from togi.stages.training.presets import fill

# docs/methods.md says what of these is public
PRESETS: dict[str, dict[str, Any]] = {
    "llm-jp-instruct3": {
        "loss": "sigmoid",
        "beta": 0.1,
        "epochs": 1.0,
        "batch_size": 256,
        "learning_rate": 9e-7,
        "schedule": "cosine",
        "final_rate": 5 / 9,
        "final_steps": 100,
        "warmup_steps": 20,
        "betas": (0.9, 0.98),
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "max_length": 4096,
        "validation": 0.05,
    },
}


class TrainDpo(PreferenceTraining):
    """Raises the log-ratio to the initial model of chosen answers over that of rejected ones."""

    type: Literal["train.dpo"] = "train.dpo"
    preset: Literal["llm-jp-instruct3"] | None = Field(default=None, description="published settings by name")
    loss: Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust"] = Field(
        default="sigmoid",
        description="sigmoid_norm: sigmoid of means over tokens; robust: corrected for label_smoothing",
    )
    beta: float = Field(default=0.1, gt=0, description="strength of the pull towards the initial model")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="assumed share of pairs whose labels are flipped"
    )
    sft_weight: float = Field(
        default=0.0, ge=0, description="weight of the cross entropy of the chosen answers' tokens (RPO; CPO: 1)"
    )
    reference: bool = Field(
        default=True,
        description="false: use log-probabilities instead of log-ratios to the initial model; CPO with sft_weight: 1",
    )
    learning_rate: float = Field(
        default=1e-6, gt=0, description="peak of the schedule; use about ten times as much for LoRA"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return fill(values, PRESETS)

    @model_validator(mode="after")
    def _smoothing_is_read(self) -> Self:
        if wrong := dpo_problem(self.loss, self.label_smoothing):
            raise ValueError(wrong)
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError(
                "loss: robust corrects for flipped labels: set label_smoothing to their share, such as 0.1"
            )
        return self


def estimate(settings: TrainDpo, inputs: Inputs) -> Cost:
    """The cost of training on pairs. With a reference, the initial model also reads once each unit of 64 pairs from
    which training takes one, which is all of them unless `steps` are few; validation may add to that."""
    cost = pairs_cost(settings, inputs)
    if not (settings.reference and cost.tokens and cost.samples):
        return cost
    more = [settings.validation] if isinstance(settings.validation, Ref) else []
    records, why = count(inputs, [*refs_of(settings.pairs), *more])
    if records is None:
        cost.unknown.append(f"operations of the reference, once per pair: {why}")
    else:
        missed = max(0.0, 1 - UNIT / max(records, UNIT)) ** cost.samples  # the share of units without a chosen pair
        cost.load = replace(cost.load, forward=cost.tokens / cost.samples * records * (1 - missed))
    return cost


UNIT = 64
"""Pairs whose reference is computed together. It depends on nothing else, so that the pairs of a unit never change."""

STAGE = StageType(
    "train.dpo",
    TrainDpo,
    outputs=gives("model"),
    work="togi.stages.training.dpo_work",
    version=2,
    reasons=REASONS,
    estimate=estimate,
    job=training_job,
)
