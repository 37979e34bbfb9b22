"""Declares the stage `train.smpo`: trains on a margin between mean log-probabilities, with cross entropy beside it."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import Settings
from togi.objectives.rules import smpo_problem
from togi.stages.base import StageType, gives
from togi.stages.training.job import training_job
from togi.stages.training.preference import REASONS, PreferenceTraining, pairs_cost
from togi.stages.training.presets import fill


def _published(**settings: Any) -> dict[str, Any]:
    """What the published configurations share, and how their code treated pairs."""
    return {
        "loss": "smooth_lower_bound",
        "margin_schedule": "constant",
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "validation": 0.05,
        "evaluate_every": 50,
        "save_every": 50,
        "overflow": "truncate",
        "score_header": True,
        **settings,
    }


def _adapter(rank: int) -> dict[str, Any]:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return {"rank": rank, "alpha": float(rank), "targets": targets}


# docs/methods.md says what of these is public; a key that the recipe sets wins
PRESETS: dict[str, dict[str, Any]] = {
    "vikhr-nemo": _published(
        beta=1.2,
        target_margin=0.4,
        chosen_sft_ratio=0.75,
        epochs=2.0,
        batch_size=8,
        warmup_steps=20,
        max_length=8192,
        max_prompt_length=4096,
        lora=_adapter(96),
        second_bos=True,
    ),
    "vikhr-llama-3.1-8b": _published(
        beta=1.1,
        target_margin=0.4,
        chosen_sft_ratio=0.75,
        epochs=2.0,
        batch_size=8,
        warmup_steps=10,
        max_length=8192,
        max_prompt_length=4096,
        lora=_adapter(96),
        second_bos=True,
    ),
    "vikhr-phi4": _published(
        beta=1.1,
        target_margin=0.5,
        chosen_sft_ratio=1.0,
        epochs=1.0,
        batch_size=16,
        max_length=10240,
        max_prompt_length=5120,
        lora=_adapter(256),
    ),
    "vikhr-qwen-1.5b": _published(
        beta=1.6, target_margin=0.5, chosen_sft_ratio=0.9, epochs=1.2, batch_size=4, lora=_adapter(128)
    ),
}


class Clipping(Settings):
    """Keeps single tokens from dominating the compared means. In the published code none of the four has an effect."""

    flip_terminator: bool = Field(
        default=False, description="reward the terminator of rejected answers instead of penalising it"
    )
    lower_quantile: float | None = Field(
        default=None, gt=0, le=0.5, description="raise rejected tokens to at least this quantile of their answer"
    )
    upper_quantile: float | None = Field(
        default=None, ge=0.5, lt=1, description="lower chosen tokens to at most this quantile of their answer"
    )
    min_logp: float | None = Field(
        default=None, lt=0, description="raise rejected tokens to at least this log-probability (nats)"
    )


class TrainSmpo(PreferenceTraining):
    """Raises the mean log-probability of chosen answers above that of rejected ones by a margin, without a reference
    model."""

    type: Literal["train.smpo"] = "train.smpo"
    preset: Literal["vikhr-nemo", "vikhr-llama-3.1-8b", "vikhr-phi4", "vikhr-qwen-1.5b"] | None = Field(
        default=None, description="published settings by name, including the header and second BOS in the loss"
    )
    loss: Literal["sigmoid", "hinge", "ipo", "smooth_lower_bound", "smooth_double_bound"] = Field(
        default="smooth_lower_bound", description="shape of the loss on the margin"
    )
    beta: float = Field(default=1.2, gt=0, description="scale of the difference that `loss` is applied to")
    target_margin: float = Field(default=0.35, ge=0, description="target of the difference, in nats per token")
    margin_delta: float | None = Field(
        default=None, gt=0, description="smooth_double_bound: width of the free band above the margin, nats per token"
    )
    margin_schedule: Literal["linear", "constant"] = Field(
        default="linear", description="linear: from 0.01 at the first step to target_margin at the end"
    )
    chosen_sft_ratio: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="share of the chosen answers in the cross entropy; the rest is on the rejected answers",
    )
    sft_weight: float = Field(default=1.0, ge=0, description="weight of both cross entropies")
    clipping: Clipping = Clipping()
    score_header: bool = Field(
        default=False, description="score the assistant's header and count it in the length, as the published code did"
    )
    second_bos: bool = Field(
        default=False,
        description="a second, scored BOS between prompt and answer: a bug of the published code; for replicas only",
    )
    learning_rate: float = Field(default=2e-5, gt=0, description="peak of the schedule; the published value, for LoRA")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return fill(values, PRESETS)

    @model_validator(mode="after")
    def _all_is_read(self) -> Self:
        if wrong := smpo_problem(self.loss, self.margin_delta):
            raise ValueError(wrong)
        if self.second_bos and not self.score_header:
            raise ValueError("second_bos precedes the header and is scored with it: set score_header too")
        return self


STAGE = StageType(
    "train.smpo",
    TrainSmpo,
    outputs=gives("model"),
    work="togi.stages.training.smpo_work",
    version=2,
    reasons=REASONS,
    estimate=pairs_cost,
    job=training_job,
)
