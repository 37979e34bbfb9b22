"""`train.grpo`: a policy learns from groups of its own answers and a gated reward.

Method and sources: docs/methods.md; GRPO is arXiv 2402.03300.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.settings import ModelRef, PromptsRef, Settings, place
from togi.rewards.settings import GuardSettings, RewardSettings
from togi.stages.base import StageSettings, StageType

REFUSED = {
    "luspo": "sum over tokens",
    "sapo": "sigmoid gate",
    "vespo": "sequence weight by sign of the advantage",
    "opsm": "off-policy sequence mask",
}


class Sampling(Settings):
    """How the policy answers while it learns. What is sampled is exactly what is trained on."""

    temperature: float = Field(default=1.0, gt=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1, description="under 1 it biases the ratio: a warning says so")
    top_k: int = Field(default=0, ge=0, description="0: off; otherwise a warning, as for top_p")
    min_p: float = Field(default=0.0, ge=0, lt=1, description="0: off; otherwise a warning, as for top_p")
    repetition_penalty: float = Field(default=1.0, description="must stay 1: the trainer cannot recompute it")
    max_tokens: int = Field(default=64, ge=1)

    @field_validator("repetition_penalty")
    @classmethod
    def _off(cls, value: float) -> float:
        if value != 1.0:
            raise ValueError(f"must be 1 in training, found {value}: the trainer cannot recompute what it does")
        return value


class Loss(Settings):
    """Which member of the family, and its constants."""

    type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    level: Literal["token", "sequence"] = Field(default="token", description="sequence: GSPO")
    eps: float = Field(default=0.2, gt=0, lt=1)
    eps_high: float | None = Field(default=None, gt=0, description="eps when absent")
    delta: float | None = Field(default=None, gt=1, description="two-sided clip")
    max_weight: float | None = Field(default=None, gt=0, description="cispo: largest ratio; 5 when absent")
    beta: float = Field(
        default=0.0, ge=0, description="weight of the KL to the initial model; over 0 keeps a copy of it"
    )

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in REFUSED:
            raise ValueError(
                f"{value!r} ({REFUSED[value]}) is not offered; choose grpo, bnpo, dr_grpo, dapo or cispo, and "
                "level: sequence for GSPO"
            )
        return value


class Lora(Settings):
    """Train low-rank adapters instead of all weights."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of linear layers",
    )
    rank_stabilised: bool = Field(default=False, description="scale by alpha / sqrt(rank)")


class TrainGrpo(StageSettings):
    """Each step: sample groups, grade them, one update. Prompts come in a shuffled order, epoch after epoch."""

    type: Literal["train.grpo"] = "train.grpo"
    init: ModelRef
    prompts: PromptsRef
    reward: RewardSettings
    steps: int = Field(default=100, ge=1)
    prompts_per_step: int = Field(default=8, ge=1)
    group_size: int = Field(default=8, ge=2)
    sampling: Sampling = Sampling()
    loss: Loss = Loss()
    scale_rewards: Literal["group", "batch", "none"] = "group"
    lora: Lora | None = None
    learning_rate: float = Field(default=1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = Field(default=1.0, gt=0)
    mask_truncated: bool = Field(default=False, description="answers cut by max_tokens carry no loss")
    guards: tuple[GuardSettings, ...] = ()
    by_characters: bool = Field(
        default=False, description="measure diversity over characters: for languages written without spaces"
    )
    dead_steps: int = Field(
        default=10, ge=0, description="stop after this many first steps in which no sample passed a gate; 0 never does"
    )
    save_every: int = Field(default=10, ge=1, description="steps between checkpoints")
    keep: int = place(2, "checkpoints to keep while the stage runs", ge=1)
    micro_batch_tokens: int = place(4096, "tokens of one micro-batch", ge=64)

    @model_validator(mode="after")
    def _guards_measure(self) -> Self:
        for guard in self.guards:
            if guard.metric == "kl" and self.loss.beta == 0:
                raise ValueError("a guard on kl needs the KL to be computed: set loss.beta above 0")
            if guard.metric == "held_out_reward":
                raise ValueError("held_out_reward is measured by `evaluate`, not while training; guard another metric")
        return self


STAGE = StageType("train.grpo", TrainGrpo, yields="model", work="togi.stages.train_grpo_work")
