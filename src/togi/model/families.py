"""What togi knows of model families by name. Every other file asks this table; a family that is not in it is measured
and probed when it is loaded, and computed as the library computes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family; `parts` is how the names of the library's classes begin.

    Of its form: `norms` of a layer, `head_norms` of queries and keys, `shifted` norms whose weight is added to 1,
    `tied` embeddings and `attention_bias` where a configuration does not say, `output_bias` where attention has biases.

    Of what togi computes in its place: `fused_norms`, `gated` feed-forward parts and by what they open, attention with
    its `window` (which the model or the layer holds), whole `layers`.

    Of what the tests hold to the library's computation: the sampler (`sampled`). All families of the table are held to
    it in training.
    """

    parts: str
    norms: int = 2
    head_norms: bool = False
    shifted: bool = False
    tied: bool = False
    attention_bias: bool = False
    output_bias: bool = True
    gated: Literal["silu", "gelu", ""] = ""
    window: Literal["none", "model", "layer", ""] = ""
    layers: bool = False
    sampled: bool = True


FAMILIES = {
    "llama": Family(parts="Llama", gated="silu", window="none", layers=True),
    "mistral": Family(parts="Mistral", gated="silu", window="model", layers=True),
    "mixtral": Family(parts="Mixtral", window="model"),
    "qwen2": Family(parts="Qwen2", attention_bias=True, output_bias=False, gated="silu", window="layer", layers=True),
    "qwen3": Family(parts="Qwen3", head_norms=True, gated="silu", window="layer", layers=True),
    "qwen3_moe": Family(parts="Qwen3Moe", head_norms=True, sampled=False),
    "gemma2": Family(parts="Gemma2", norms=4, shifted=True, tied=True, gated="gelu", window="layer"),
    "gemma3_text": Family(
        parts="Gemma3", norms=4, head_norms=True, shifted=True, tied=True, gated="gelu", window="layer"
    ),
}
_OTHER = Family(parts="")
_OTHER_GEMMA = Family(parts="", tied=True)


def family_of(model_type: str) -> Family:
    """The family of a `model_type`; of one that is not in the table what most families are. All Gemmas tie their
    embeddings."""
    return FAMILIES.get(model_type, _OTHER_GEMMA if model_type.startswith("gemma") else _OTHER)


def parts_of(part: str, wanted: Callable[[Family], bool]) -> tuple[str, ...]:
    """The names of the library's classes for a part, such as `RMSNorm`, of the families that are wanted."""
    return tuple(f"{family.parts}{part}" for family in FAMILIES.values() if wanted(family))
