"""What a training stage uses of a machine, and in which form it keeps its weights."""

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import place
from togi.model.memory import LINEARS, Job, Shape
from togi.stages.base import RankedSettings
from togi.stages.lora import Lora

Tokens = Annotated[int, Field(ge=64)]
USABLE = 0.9  # of what is free: allocators leave gaps
USABLE_CPU = 0.7  # where the gaps are larger: docs/memory.md


class Resources(RankedSettings):
    """Memory and precision of a training stage. `weights` and `optimizer` change what is learnt; the others do not,
    but for rounding."""

    lora: Lora | None = Field(default=None, description="train adapters instead of all weights; merged when saved")
    weights: Literal["float32", "bfloat16", "bfloat16-master"] = Field(
        default="float32",
        description="how weights are kept: in float32; in bfloat16, which loses small updates (with lora only the "
        "frozen ones are, and nothing is lost); in bfloat16 with float32 masters beside the optimiser",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw", description="adamw-8bit: moments in 8 bits (needs bitsandbytes)"
    )
    micro_batch_tokens: Tokens | Literal["auto"] = place(
        4096, "tokens of one micro-batch; examples are never cut; auto: the most that fits the memory at hand"
    )
    activation_checkpointing: bool = place(False, "keep only the input of each layer and compute the layer twice")
    offload_optimizer: bool = place(False, "on CUDA: masters and moments on the host, where the update is computed")

    @model_validator(mode="after")
    def _masters_of_what_is_trained(self) -> Self:
        if self.lora is not None and self.weights == "bfloat16-master":
            raise ValueError("weights: with lora the trained adapter is float32 already; use bfloat16 for the others")
        if self.lora is not None and self.lora.base == "nf4" and self.weights == "bfloat16":
            raise ValueError("weights: lora.base nf4 keeps the frozen ones in 4 bits; leave weights at float32")
        return self

    @model_validator(mode="after")
    def _what_several_processes_can_do(self) -> Self:
        for name, special in (
            ("weights: bfloat16-master", self.weights == "bfloat16-master"),
            ("optimizer: adamw-8bit", self.optimizer == "adamw-8bit"),
            ("offload_optimizer", self.offload_optimizer),
            ("lora.base: nf4", self.lora is not None and self.lora.base == "nf4"),
        ):
            if special and self.processes > 1:
                raise ValueError(
                    f"{name} works on one process, found processes: {self.processes}; several processes share weights "
                    "and moments among them already"
                )
        return self

    @property
    def tokens_at_once(self) -> int:
        """`micro_batch_tokens`, once `auto` has been decided."""
        if self.micro_batch_tokens == "auto":
            raise ValueError("micro_batch_tokens: auto has not been decided yet")
        return self.micro_batch_tokens


def job_of(settings: Resources, products: str, *, cuda: bool = False) -> Job:
    """How the settings of a training stage train, as the arithmetic sees it."""
    lora = settings.lora
    weights = "nf4" if lora is not None and lora.base == "nf4" else settings.weights
    return Job(
        weights=weights,
        products="bfloat16" if products == "bfloat16" or settings.weights != "float32" else "float32",
        bits=8 if settings.optimizer == "adamw-8bit" else 32,
        rank=0 if lora is None else lora.rank,
        targets=LINEARS if lora is None else lora.targets,
        checkpointing=settings.activation_checkpointing,
        offload=settings.offload_optimizer and cuda,
        entropy=settings.type == "train.grpo",
        scorer=settings.type == "train.reward",
        accelerator=cuda,
        layers=getattr(settings, "train_layers", None),
    )


def shape_of(settings: Resources, shape: Shape) -> Shape:
    """The sizes of what is trained from a model of the sizes `shape`: a scorer has no head over the vocabulary, and may
    have fewer layers."""
    if settings.type != "train.reward":
        return shape
    kept = getattr(settings, "keep_layers", None) or shape.layers
    return replace(shape, tied=True, layers=min(kept, shape.layers))
