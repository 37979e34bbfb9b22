"""Settings that all training on fixed data shares: the update, when to validate and save, which weights to keep.

"Fixed" data are records that exist before training begins, unlike the answers that `train.grpo` samples for itself.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, runtime_setting
from togi.stages.training.resources import Resources

Share = Annotated[float, Field(gt=0, lt=1)]


class Optimisation(Resources):
    """From a model to a trained one. `init` gives weights alone; going on after a kill is never `init`.

    A subclass adds its data, and narrows `validation` to the records that it takes.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss",)
    adds_router_loss: ClassVar[bool] = False

    init: ModelRef = Field(description="the model to start from: its weights alone")
    learning_rate: float = Field(default=1e-5, gt=0, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0, description="optimiser steps in which the rate rises from 0")
    final_rate: float = Field(default=0.0, ge=0, le=1, description="share of the peak at which linear and cosine end")
    final_steps: int = Field(default=0, ge=0, description="last optimiser steps that stay at the final rate")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, description="AdamW's")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's; norms and biases are not decayed")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    validation: Any = Field(default=None, description="records, or the share of the prompts to keep out of training")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="optimiser steps between validations; absent: at the end alone"
    )
    choose: Literal["last", "best"] = Field(
        default="last", description="which weights to keep: of the last step, or of the best validation"
    )
    choose_by: Literal["loss", "accuracy"] = Field(default="loss", description="what best means")
    router_loss: float | None = Field(
        default=None,
        ge=0,
        description="weight of the load-balancing loss of a mixture-of-experts model; absent: the model's own in "
        "train.sft and train.pretrain, 0 elsewhere",
    )
    save_every: int = Field(default=50, ge=1, description="optimiser steps between checkpoints")
    keep: int = runtime_setting(2, "newest checkpoints to keep while the stage runs, beside the best one", ge=1)

    @model_validator(mode="after")
    def _validates(self) -> Self:
        if self.validation is None:
            for name, wanted in (("choose", self.choose == "best"), ("evaluate_every", self.evaluate_every)):
                if wanted:
                    raise ValueError(f"{name} needs validation: name records, or a share such as 0.05")
        if self.choose == "best" and self.evaluate_every is None:
            raise ValueError("choose: best needs evaluate_every: without it only the last step's weights are validated")
        if self.choose_by not in self.measures:
            raise ValueError(f"choose_by: {self.type} measures {' and '.join(self.measures)}, not {self.choose_by}")
        return self

    @model_validator(mode="after")
    def _final_rate_is_reached(self) -> Self:
        if self.schedule == "constant" and (self.final_rate or self.final_steps):
            name = "final_rate" if self.final_rate else "final_steps"
            raise ValueError(f"{name} does nothing under schedule: constant; choose linear or cosine, or leave it")
        if self.final_steps and not self.final_rate:
            raise ValueError("final_steps at a final rate of 0 would train nothing; set final_rate too")
        return self


class TokenisedTraining(Optimisation):
    """Training on records that become tokens on the disk before it begins."""

    workers: int = runtime_setting(
        1, "processes that tokenise, 4,096 records at a time each; 1: the stage's own", ge=1, le=1024
    )

    @property
    def pool(self) -> int:
        return self.workers


class FixedTraining(TokenisedTraining):
    """Training that passes over its examples in a shuffled order, epoch after epoch."""

    epochs: float | None = Field(default=None, gt=0, description="passes over the data; absent, without steps: 1")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(default=16, ge=1, description="examples (chats, pairs) of one optimiser step")
    max_length: int | None = Field(default=None, ge=8, description="tokens of an example; absent: the model's context")
    overflow: Any = Field(default="drop", description="what a longer example does: drop (counted) or error")

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both say how long to train; keep one of them, and set the other to null")
        return self
