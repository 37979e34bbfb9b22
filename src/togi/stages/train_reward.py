"""`train.reward`: a reward model from preference pairs (Bradley-Terry; docs/methods.md)."""

from typing import Literal

from pydantic import Field

from togi.core.settings import ModelRef, PairsRef, place
from togi.stages.base import StageSettings, StageType


class TrainReward(StageSettings):
    """-log sigmoid(score(chosen) - score(rejected) - margin), mean over pairs, plus centring."""

    type: Literal["train.reward"] = "train.reward"
    init: ModelRef
    pairs: PairsRef | tuple[PairsRef, ...] = Field(description="preference pairs, of one stage or of several")
    train_layers: int | None = Field(
        default=None, ge=0, description="transformer layers to train, from the top; 0 trains the head alone, absent all"
    )
    keep_layers: int | None = Field(
        default=None,
        ge=1,
        description="transformer layers to keep, from the bottom; all when absent. A base model's middle tells best "
        "what an answer is about, its top what comes next",
    )
    epochs: int = Field(default=1, ge=1)
    batch_pairs: int = Field(default=16, ge=1, description="pairs of one optimiser step")
    learning_rate: float = Field(default=5e-6, gt=0)
    head_learning_rate: float | None = Field(
        default=None, gt=0, description="of the new head; learning_rate when absent"
    )
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    centring: float = Field(default=0.01, ge=0, description="weight of mean((score_chosen + score_rejected)^2)")
    held_out: float = Field(default=0.2, ge=0, lt=1, description="share of the pairs kept for measuring accuracy")
    shuffled_control: bool = Field(
        default=False, description="also train on shuffled labels: its held-out accuracy should be near one half"
    )
    max_length: int = Field(default=1024, ge=8, description="tokens; longer pairs are dropped and counted")
    save_every: int = Field(default=50, ge=1, description="optimiser steps between checkpoints")
    micro_batch_tokens: int = place(4096, "tokens of one micro-batch", ge=64)


STAGE = StageType("train.reward", TrainReward, yields="scorer", work="togi.stages.train_reward_work")
