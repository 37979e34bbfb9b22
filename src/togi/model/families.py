"""What togi knows of model families, by name. All other modules use this table. A family that is not in it is measured
and probed when it is loaded, and the library computes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family; `parts` is the prefix of the library's class names.

    Structure: `norms` per layer, `head_norms` of queries and keys, `shifted` norms whose weight is added to 1, `tied`
    embeddings and `attention_bias` if a configuration does not specify them, `output_bias` if attention has biases.

    Parts that togi computes instead of the library: feed-forward parts with the `gated` activation, attention with its
    `window` (a setting of the model or of the layer), whole `layers`.

    Tests against the library's computation: `sampled` if the sampler is tested. Training is tested for all families in
    the table.
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
    """The family of a `model_type`; for one that is not in the table, the values of most families. All Gemmas tie
    their embeddings."""
    return FAMILIES.get(model_type, _OTHER_GEMMA if model_type.startswith("gemma") else _OTHER)


def parts_of(part: str, wanted: Callable[[Family], bool]) -> tuple[str, ...]:
    """The library's class names for a part, such as `RMSNorm`, of the families for which `wanted` is true."""
    return tuple(f"{family.parts}{part}" for family in FAMILIES.values() if wanted(family))
