"""What a training stage uses of a machine, and in which form it keeps its weights."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from togi.core.errors import InputError
from togi.core.settings import runtime_setting
from togi.stages.base import RankedSettings
from togi.stages.training.lora import Lora

Tokens = Annotated[int, Field(ge=64)]
USABLE = 0.9  # of what is free: allocators leave gaps
USABLE_CPU = 0.7  # where the gaps are larger: docs/memory.md


def key_room(total: float, weights: float) -> float:
    """The bytes that the keys of one model may take of a card of `total` bytes while it writes: what is left beside its
    weights, or beside the half of the card that several kept models may fill."""
    return max(USABLE * total - max(weights, total / 2), 0.0)


class Resources(RankedSettings):
    """Memory and precision of a training stage. `weights` and `optimizer` change what is learnt; the others do not,
    but for rounding."""

    lora: Lora | None = Field(default=None, description="train adapters instead of all weights; merged when saved")
    weights: Literal["float32", "bfloat16", "bfloat16-master"] = Field(
        default="float32",
        description="how weights are kept: in float32; in bfloat16, which loses small updates (with lora only the "
        "frozen ones are, and nothing is lost); in bfloat16 with float32 masters beside the optimiser",
    )
    save_dtype: Literal["base", "float32", "bfloat16", "float16"] = Field(
        default="base",
        description="the type of the saved weights; base: the one in which the initial model's weights are stored. A "
        "stage that goes on from this one reads what was saved, rounded so",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw", description="adamw-8bit: moments in 8 bits (needs bitsandbytes)"
    )
    micro_batch_tokens: Tokens | Literal["auto"] = runtime_setting(
        4096, "tokens of one micro-batch; examples are never cut; auto: the most that fits the memory at hand"
    )
    activation_checkpointing: bool = runtime_setting(False, "keep only each layer's input and compute the layer twice")
    offload_optimizer: bool = runtime_setting(
        False, "on CUDA: keep masters and moments on the host and compute the update there"
    )

    @model_validator(mode="after")
    def _masters_of_what_is_trained(self) -> Self:
        if self.lora is not None and self.weights == "bfloat16-master":
            raise ValueError("weights: with lora the trained adapter is float32 already; use bfloat16 for the others")
        if self.lora is not None and self.lora.base == "nf4" and self.weights == "bfloat16":
            raise ValueError("weights: lora.base nf4 keeps the frozen ones in 4 bits; leave weights at float32")
        return self

    @model_validator(mode="after")
    def _adapters_that_lie_on_a_base(self) -> Self:
        if self.lora is None or self.lora.save == "merged":
            return self
        saved = f"lora.save: {self.lora.save}"
        if self.lora.base == "nf4":
            raise ValueError(
                f"{saved}: with lora.base nf4 the adapter is trained on weights in 4 bits that no folder holds, and on "
                "the plain base it would be another model; use save: merged, or a base that was saved in 4 bits"
            )
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


def refuse_training(
    settings: Resources, config: Mapping[str, Any], name: str, *, adapter: bool = False, added: bool = False
) -> None:
    """Refuses, before any weights are read, what could not be trained or saved. `config` is the configuration of the
    initial model, or of what lies beneath it where that is an `adapter`; `added`: the recipe adds tokens to it.

    Raises InputError with the reason.
    """
    lora = settings.lora
    method = _quantised_by(config)
    if method == BITS_AND_BYTES and lora is None:
        raise InputError(
            f"{name}: its weights are stored in 4 bits, which take no update, so only norms and embeddings would be "
            "trained; use lora, or name the model's plain weights"
        )
    if method == BITS_AND_BYTES and settings.processes > 1:
        raise InputError(f"{name}: its weights are stored in 4 bits, which one process can train; set processes: 1")
    if method not in (None, BITS_AND_BYTES):
        raise InputError(
            f"{name}: its weights are quantised ({method}), which cannot be trained and saved; name the model's plain "
            "weights (lora: {base: nf4} keeps them in 4 bits), or a model that bitsandbytes saved in 4 bits"
        )
    if lora is None or lora.save == "merged":
        return
    if adapter:
        raise InputError(
            f"{name}: it is an adapter itself, so that a new adapter would lie on a model that no folder holds; use "
            "lora: {save: merged}, or save: both in the stage that made it"
        )
    if added:
        raise InputError(
            f"{name}: it gets tokens (tokens: add) for which its folder has no rows, so that an adapter would not fit "
            "it; use lora: {save: merged}"
        )
    head = any(target.rpartition(".")[2] == "lm_head" for target in lora.targets)
    if head and _text(config).get("tie_word_embeddings", config.get("tie_word_embeddings", True)):
        raise InputError(
            f"{name}: an adapter on lm_head, which shares its weights with the embeddings, changes both on its base; "
            "use lora: {save: merged}, or leave lm_head out of the targets"
        )


BITS_AND_BYTES = "bitsandbytes in 4 bits"


def _quantised_by(config: Mapping[str, Any]) -> str | None:
    """How a model's weights are quantised; None where they are not."""
    found = config.get("quantization_config")
    if not found:
        return None
    if found.get("load_in_4bit"):
        return BITS_AND_BYTES
    return "bitsandbytes in 8 bits" if found.get("load_in_8bit") else str(found.get("quant_method", "unknown"))


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("text_config")
    return found if isinstance(found, Mapping) else config
