"""Settings shared by training stages: the update, when to validate and save, which weights to keep.

"Fixed" data are records that exist before training begins, unlike the answers that `train.grpo` samples.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, references, runtime_setting
from togi.stages.training.resources import Resources

Share = Annotated[float, Field(gt=0, lt=1)]


class Optimisation(Resources):
    """Trains a model. `init` provides only its weights; a run resumes from checkpoints, never from `init`.

    A subclass adds its data, and narrows `validation` to the records that it accepts.
    """

    lengths: ClassVar[tuple[str, ...]] = ("steps", "epochs", "tokens")
    measures: ClassVar[tuple[str, ...]] = ("loss",)
    adds_router_loss: ClassVar[bool] = False

    init: ModelRef = Field(description="the model to start from; only its weights are used")
    learning_rate: float = Field(default=1e-5, gt=0, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0, description="optimiser steps over which the rate rises from 0")
    final_rate: float = Field(
        default=0.0, ge=0, le=1, description="final rate of linear and cosine, as a share of the peak"
    )
    final_steps: int = Field(default=0, ge=0, description="optimiser steps at the end that stay at the final rate")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, description="epsilon of AdamW")
    weight_decay: float = Field(
        default=0.0, ge=0, description="weight decay of AdamW; norms and biases are not decayed"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    validation: Any = Field(default=None, description="records, or the share of the prompts to keep out of training")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="optimiser steps between validations; absent: only at the end"
    )
    choose: Literal["last", "best"] = Field(
        default="last", description="weights to keep: those of the last step, or those of the best validation"
    )
    choose_by: Literal["loss", "accuracy"] = Field(default="loss", description="metric of the best validation")
    router_loss: float | None = Field(
        default=None,
        ge=0,
        description="weight of the load-balancing loss of a mixture-of-experts model; absent: the model's own in "
        "train.sft and train.pretrain, 0 elsewhere",
    )
    save_every: int = Field(default=50, ge=1, description="optimiser steps between checkpoints")
    keep: int = runtime_setting(2, "newest checkpoints to keep while the stage runs, besides the best one", ge=1)

    def brief(self, steps: int) -> dict[str, int]:
        """The settings of a schedule that fits into `steps` optimiser steps: a tenth to warm up, a tenth at the end."""
        return {name: min(getattr(self, name), steps // 10) for name in ("warmup_steps", "final_steps")}

    def long_warmup(self, steps: int) -> str:
        """Says that the warm-up covers half of all `steps` or more; empty if it does not."""
        warmup, rate = self.warmup_steps, self.learning_rate
        if warmup <= 1 or 2 * warmup < steps:
            return ""
        effect = f"never reaches {rate:g}" if warmup > steps else f"reaches {rate:g} only at step {warmup}"
        return (
            f"{steps} steps, and warmup_steps is {warmup}: the learning rate {effect}; lower warmup_steps, for example "
            f"to {steps // 10}, or train for more steps"
        )

    def lost_decay(self, steps: int) -> str:
        """Says that warm-up and final steps leave no step for the decay of the learning rate; empty if they do."""
        left = steps - self.warmup_steps - self.final_steps
        if self.schedule == "constant" or not self.final_steps or left > 1 or steps <= 2:
            return ""
        return (
            f"{steps} steps; warmup_steps {self.warmup_steps} and final_steps {self.final_steps} leave none for the "
            f"{self.schedule} decay, so the rate drops at once; lower them, or train for more steps"
        )

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
            raise ValueError(f"{name} does nothing with schedule: constant; choose linear or cosine, or remove it")
        if self.final_steps and not self.final_rate:
            raise ValueError("final_steps at a final rate of 0 would train nothing; set final_rate too")
        return self


class TokenisedTraining(Optimisation):
    """Training on records that are tokenised to disk before it begins."""

    workers: int = runtime_setting(
        1, "processes that tokenise, 4,096 records at a time each; 1: the stage's own process", ge=1, le=1024
    )

    @property
    def pool(self) -> int:
        return self.workers


class FixedTraining(TokenisedTraining):
    """Training that passes over its examples in epochs, each in a new random order."""

    epochs: float | None = Field(
        default=None, gt=0, description="passes over the data; 1 if both epochs and steps are absent"
    )
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, instead of epochs")
    batch_size: int = Field(default=16, ge=1, description="examples (chats, pairs) per optimiser step")
    max_length: int | None = Field(
        default=None, ge=8, description="maximum tokens of an example; absent: the model's context"
    )
    overflow: Any = Field(default="drop", description="treatment of longer examples: drop (counted) or error")

    def limited(self, rows: int) -> Self:
        """Limits the training to one epoch of `rows` rows from each data set."""
        data = [path for path, _ in references(self) if path[0] not in ("init", "validation")]
        steps = -(-rows * len(data) // self.batch_size)
        if self.steps is None:
            epochs = None if self.epochs is None else min(self.epochs, 1.0)
            return self.model_copy(update={"epochs": epochs, **self.brief(steps)})
        return self if steps >= self.steps else self.model_copy(update={"steps": steps, **self.brief(steps)})

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both set how long to train; keep one of them, and set the other to null")
        return self
