"""Declares the stage `train.reward`: a reward model from preference pairs (Bradley-Terry; docs/methods.md)."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import APART, PairsRef, refs_of
from togi.stages.base import StageType, gives
from togi.stages.cost import Cost, Inputs
from togi.stages.training.estimates import fixed_cost
from togi.stages.training.job import TrainingJob
from togi.stages.training.optimisation import FixedTraining, Share
from togi.stages.training.presets import fill

PRESETS: dict[str, dict[str, Any]] = {
    "ca-reward-3b": {
        "epochs": 1.0,
        "batch_size": 32,
        "learning_rate": 5e-6,
        "schedule": "linear",
        "max_length": 4096,
        "centring": 0.0,
    },
    "vikhr-reward-llama3.1-8b": {
        "epochs": 2.0,
        "batch_size": 16,
        "learning_rate": 4e-4,
        "schedule": "linear",
        "warmup_steps": 20,
        "max_length": 8192,
        "centring": 0.0,
        "lora": {"rank": 32, "alpha": 32.0, "targets": ("all-linear",)},
    },
}

REASONS = ("empty_answer", "two_bos", "equal_answers", "too_long", "not_rendered")
"""Reasons for which a pair is dropped."""


class TrainReward(FixedTraining):
    """-log sigmoid(score(chosen) - score(rejected) - margin), mean over pairs, plus centring.

    With `lora` the new head is trained in full, next to the adapters.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    type: Literal["train.reward"] = "train.reward"
    preset: Literal["ca-reward-3b", "vikhr-reward-llama3.1-8b"] | None = Field(
        default=None, description="published settings by name; keys in the recipe override them one by one"
    )
    pairs: PairsRef | tuple[PairsRef, ...] = Field(description="preference pairs, from one stage or several")
    train_layers: int | None = Field(
        default=None, ge=0, description="transformer layers to train, from the top; 0: the head alone; absent: all"
    )
    keep_layers: int | None = Field(
        default=None,
        ge=1,
        description="transformer layers to keep, from the bottom; all when absent. In a base model the middle layers "
        "represent the content of an answer best, and the top layers the next token",
    )
    learning_rate: float = Field(default=5e-6, gt=0, description="peak of the schedule")
    sweep: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="learning rates to try, each in a separate training; the most accurate model is kept"
    )
    head_learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of the new head; learning_rate when absent"
    )
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    centring: float = Field(default=0.01, ge=0, description="weight of mean((score_chosen + score_rejected)^2)")
    margin: bool = Field(default=False, description="subtract the margin of each pair; every pair must have one")
    validation: Share | PairsRef | None = Field(
        default=0.2, description="pairs, or the share of the prompts to keep out of training", json_schema_extra=APART
    )
    shuffled_control: bool = Field(
        default=False, description="also train on shuffled labels: its held-out accuracy should be near one half"
    )
    max_length: int | None = Field(
        default=None, ge=8, description="maximum tokens of the longer side of a pair; absent: the model's context"
    )
    overflow: Literal["drop", "error"] = Field(
        default="drop", description="treatment of longer pairs; drops are counted"
    )
    on_bad_pair: Literal["drop", "error"] = Field(
        default="drop", description="treatment of pairs with an empty answer or two equal ones: drop (counted) or error"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        filled = fill(values, PRESETS)
        if isinstance(values, dict) and values.get("sweep") and "learning_rate" not in values:
            filled.pop("learning_rate", None)  # the preset's rate; the user asked for the sweep
        return filled

    @model_validator(mode="after")
    def _one_way_to_train(self) -> Self:
        if self.lora is not None and self.train_layers is not None:
            raise ValueError("train_layers and lora both set which weights are trained; keep one of them")
        if self.keep_layers is not None and (self.train_layers or 0) > self.keep_layers:
            raise ValueError(f"train_layers is {self.train_layers}, but keep_layers leaves {self.keep_layers} layers")
        if self.router_loss:
            raise ValueError("router_loss: reward models are trained without it; remove it")
        if self.shuffled_control and self.validation is None:
            raise ValueError("shuffled_control needs validation: its accuracy is measured on held-out pairs")
        return self

    @model_validator(mode="after")
    def _head_is_saved(self) -> Self:
        if self.lora is not None and self.lora.save != "merged":
            raise ValueError(
                f"lora.save: {self.lora.save}: a reward model has a head that its base lacks; use save: merged"
            )
        return self

    @model_validator(mode="after")
    def _sweep_compares(self) -> Self:
        if not self.sweep:
            return self
        if len(self.sweep) < 2 or len(dict.fromkeys(self.sweep)) < len(self.sweep):
            raise ValueError(f"sweep needs two or more different learning rates, found {list(self.sweep)}")
        if self.learning_rate != type(self).model_fields["learning_rate"].default:
            raise ValueError("sweep and learning_rate both set the rate; keep one of them")
        if self.validation is None:
            raise ValueError("sweep needs validation: the rate is chosen by the accuracy on held-out pairs")
        return self


def estimate(settings: TrainReward, inputs: Inputs) -> Cost:
    """The cost of one training per rate of the sweep and one for the control. A frozen body is computed once for
    all."""
    cost = fixed_cost(settings, inputs, refs_of(settings.pairs), sides=2)
    trainings = max(1, len(settings.sweep)) + settings.shuffled_control
    if trainings == 1:
        return cost
    cost.notes.append(f"samples and tokens: of {trainings} trainings together")
    cost.samples = None if cost.samples is None else trainings * cost.samples
    if cost.tokens is not None and settings.train_layers != 0:
        cost.tokens *= trainings
    return cost


def job(settings: TrainReward) -> TrainingJob:
    """The job: a head with one output on the kept layers."""
    layers, kept = settings.train_layers, settings.keep_layers
    return TrainingJob(settings=settings, scorer=True, train_layers=layers, keep_layers=kept)


STAGE = StageType(
    "train.reward",
    TrainReward,
    outputs=gives("scorer"),
    work="togi.stages.training.reward_work",
    version=7,
    reasons=REASONS,
    estimate=estimate,
    job=job,
)
