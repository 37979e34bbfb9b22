"""Settings of low-rank adapters, for every stage that trains."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from togi.core.settings import Settings
from togi.model.adapter import ALL_LINEAR

Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Lora(Settings):
    """Train low-rank adapters (and rows of single tokens) instead of all weights."""

    rank: int = Field(default=16, ge=1, le=4096)
    alpha: float = Field(default=32.0, gt=0, description="the adapter is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of linear layers; all-linear, alone or in the list: all except the heads",
    )
    rank_stabilised: bool = Field(default=False, description="scale by alpha / sqrt(rank) instead (rsLoRA)")
    token_rows: tuple[str, ...] = Field(
        default=(),
        description="tokens of the tokenizer, by their text, whose rows of the embeddings and the output head are "
        "trained too",
    )
    base: Literal["as_loaded", "nf4"] = Field(
        default="as_loaded", description="nf4: keep the frozen weights in 4 bits (QLoRA; needs bitsandbytes)"
    )

    save: Literal["merged", "adapter", "both"] = Field(
        default="merged",
        description="output of the stage. merged: the model with the adapter merged; adapter: the adapter alone, which "
        "peft and vLLM load onto its base; both: the merged model, with the adapter in output/adapter. A "
        "reward model can only be merged",
    )

    @field_validator("targets", mode="before", json_schema_input_type=Literal["all-linear"] | Names)
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        """`all-linear` alone, as PEFT and Axolotl write it."""
        return (value,) if value == ALL_LINEAR else value

    @field_validator("targets", "token_rows")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = [name for i, name in enumerate(value) if name in value[:i]]
        if twice or "" in value:
            raise ValueError(f"names must be non-empty and listed only once, found {twice or ['']}")
        return value
