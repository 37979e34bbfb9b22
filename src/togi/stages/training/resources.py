"""Memory, precision and processes of a training stage."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from togi.core.errors import InputError
from togi.core.settings import runtime_setting
from togi.stages.base import RankedSettings
from togi.stages.training.lora import Lora

Tokens = Annotated[int, Field(ge=64)]
USABLE = 0.9  # share of the free memory; allocators leave gaps
USABLE_CPU = 0.7  # on a CPU the gaps are larger: docs/memory.md


def key_room(total: float, weights: float) -> float:
    """Bytes for the key-value cache of one generating model on a card of `total` bytes. This is what its weights leave
    free, but at most what remains if loaded models fill half of the card."""
    return max(USABLE * total - max(weights, total / 2), 0.0)


class Resources(RankedSettings):
    """Memory and precision of a training stage. `weights` and `optimizer` change the result; the others change only
    its rounding."""

    lora: Lora | None = Field(default=None, description="train adapters instead of all weights")
    weights: Literal["float32", "bfloat16", "bfloat16-master"] = Field(
        default="float32",
        description="type of the weights during training. bfloat16 loses small updates; with lora it applies to the "
        "frozen weights alone, and no update is lost. bfloat16-master: bfloat16 with float32 master weights during "
        "the training; the saved weights are those in bfloat16",
    )
    save_dtype: Literal["base", "float32", "bfloat16", "float16"] = Field(
        default="base",
        description="type of the saved weights; base: the type in which the initial model is stored. A later stage "
        "starts from the saved, rounded weights",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw", description="adamw-8bit: moments in 8 bits (needs bitsandbytes)"
    )
    micro_batch_tokens: Tokens | Literal["auto"] = runtime_setting(
        4096, "tokens per micro-batch; examples are never cut; auto: as many as fit into the available memory"
    )
    activation_checkpointing: bool = runtime_setting(
        False, "keep only the input of each layer, and compute the layer again in the backward pass"
    )
    offload_optimizer: bool = runtime_setting(
        False, "on CUDA: keep master weights and moments in host memory and compute the update there"
    )

    @model_validator(mode="after")
    def _masters_of_what_is_trained(self) -> Self:
        if self.lora is not None and self.weights == "bfloat16-master":
            raise ValueError(
                "weights: with lora the trained adapter is already float32; use bfloat16 for the frozen weights"
            )
        if self.lora is not None and self.lora.base == "nf4" and self.weights == "bfloat16":
            raise ValueError("weights: lora.base nf4 keeps the frozen weights in 4 bits; leave weights at float32")
        return self

    @model_validator(mode="after")
    def _adapters_that_lie_on_a_base(self) -> Self:
        if self.lora is None or self.lora.save == "merged":
            return self
        saved = f"lora.save: {self.lora.save}"
        if self.lora.base == "nf4":
            raise ValueError(
                f"{saved}: with lora.base nf4 the adapter is trained on 4-bit weights that are not stored anywhere. On "
                "the unquantised base it would give a different model: use save: merged, or a base saved in 4 bits"
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
                    f"{name} works with one process only, found processes: {self.processes}; several processes already "
                    "shard weights and moments among them"
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
    """Raises InputError, before any weights are read, for a model that could not be trained or saved.

    `config` is the configuration of the initial model, or of its base if it is an `adapter`. `added`: the recipe adds
    tokens to it.
    """
    lora = settings.lora
    method = _quantised_by(config)
    if method == BITS_AND_BYTES and lora is None:
        raise InputError(
            f"{name}: its weights are stored in 4 bits and cannot be updated, so only norms and embeddings would be "
            "trained; use lora, or name the model's unquantised weights"
        )
    if method == BITS_AND_BYTES and settings.processes > 1:
        raise InputError(f"{name}: its weights are stored in 4 bits, which needs a single process; set processes: 1")
    if method not in (None, BITS_AND_BYTES):
        raise InputError(
            f"{name}: its weights are quantised ({method}), which togi cannot train and save; name the model's "
            "unquantised weights (lora: {base: nf4} keeps them in 4 bits), or a model saved in 4 bits by bitsandbytes"
        )
    if lora is None or lora.save == "merged":
        return
    if adapter:
        raise InputError(
            f"{name}: it is an adapter itself, so a new adapter would have a base that is not stored anywhere; use "
            "lora: {save: merged}, or save: both in the stage that made it"
        )
    if added:
        raise InputError(
            f"{name}: the recipe adds tokens to it (tokens: add) for which its folder has no embedding rows, so an "
            "adapter would not fit it; use lora: {save: merged}"
        )
    head = any(target.rpartition(".")[2] == "lm_head" for target in lora.targets)
    if head and _text(config).get("tie_word_embeddings", config.get("tie_word_embeddings", True)):
        raise InputError(
            f"{name}: an adapter on lm_head, which shares its weights with the embeddings, changes both on its base; "
            "use lora: {save: merged}, or leave lm_head out of the targets"
        )


BITS_AND_BYTES = "bitsandbytes in 4 bits"


def _quantised_by(config: Mapping[str, Any]) -> str | None:
    """How a model's weights are quantised; None if they are not."""
    found = config.get("quantization_config")
    if not found:
        return None
    if found.get("load_in_4bit"):
        return BITS_AND_BYTES
    return "bitsandbytes in 8 bits" if found.get("load_in_8bit") else str(found.get("quant_method", "unknown"))


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("text_config")
    return found if isinstance(found, Mapping) else config
