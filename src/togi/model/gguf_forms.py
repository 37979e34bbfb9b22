"""The networks that can be written as GGUF, and the metadata that llama.cpp needs for each.

The keys and the order of rows follow llama.cpp's own converter. A configuration that contradicts what llama.cpp fixes
in its code (such as Gemma 3's pattern of windows) is refused: the file would load but compute another network.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor

from togi.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Form:
    """A network as llama.cpp knows it. `rotated`: rows of queries and keys are in pairs, and divisors of rotary
    frequencies are known; `shifted`: norms are stored as weight + 1. `act` is the activation, which is not in the file.
    `check` returns another setting that llama.cpp would compute differently, or None."""

    arch: gguf.MODEL_ARCH
    rotated: bool = False
    shifted: bool = False
    act: str = "silu"
    check: Callable[[Any], str | None] = lambda config: None


def _plain_window(config: Any) -> str | None:
    """Refuses a sliding window, which llama.cpp does not support for these networks."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    used = getattr(config, "use_sliding_window", True) and "sliding_attention" in kinds
    if used and window is not None and window < config.max_position_embeddings:
        return f"sliding_window: {window}"
    return None


def _qwen_2(config: Any) -> str | None:
    """Refuses a window, and heads of another size: llama.cpp divides the width by the number of heads."""
    usual = config.hidden_size // config.num_attention_heads
    return _plain_window(config) or (f"head_dim: {_head(config)}, not {usual}" if _head(config) != usual else None)


LAYERS_OF_27B = 62
"""The layers of Gemma 3 27B, by which llama.cpp recognises it: it scales its queries by another number."""


def _gemma_3(config: Any) -> str | None:
    """Refuses what contradicts the constants in llama.cpp's code for Gemma 3."""
    kinds = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(_layers(config))]
    if list(config.layer_types) != kinds:
        return "layer_types: every sixth layer must have full attention, the others a window"
    local = _rope(config, "sliding_attention")
    if local.get("rope_theta") != 10_000.0 or local.get("rope_type", "default") != "default":
        return f"the rotary positions of windowed layers: {local}, not the default with the base 10,000"
    if config.query_pre_attn_scalar != config.head_dim:
        return f"query_pre_attn_scalar: {config.query_pre_attn_scalar}, not head_dim ({config.head_dim})"
    if _layers(config) == LAYERS_OF_27B:
        return f"{LAYERS_OF_27B} layers: it would be taken for Gemma 3 27B"
    capped = [name for name in ("attn_logit_softcapping", "final_logit_softcapping") if getattr(config, name, None)]
    return f"{capped[0]}: {getattr(config, capped[0])}" if capped else None


FORMS = {
    "llama": Form(gguf.MODEL_ARCH.LLAMA, rotated=True),
    "mistral": Form(gguf.MODEL_ARCH.LLAMA, rotated=True, check=_plain_window),
    "qwen2": Form(gguf.MODEL_ARCH.QWEN2, check=_qwen_2),
    "qwen3": Form(gguf.MODEL_ARCH.QWEN3, check=_plain_window),
    "gemma3_text": Form(gguf.MODEL_ARCH.GEMMA3, shifted=True, act="gelu_pytorch_tanh", check=_gemma_3),
}
"""Forms by the `model_type` of a configuration."""


def form_of(config: Any) -> Form:
    """The form of a network. Raises InputError, with the reason, if it cannot be written as GGUF."""
    form = FORMS.get(config.model_type)
    if form is None:
        known = ", ".join(FORMS)
        raise InputError(f"model_type {config.model_type!r} cannot be written as GGUF; these can: {known}")
    if (wrong := form.check(config) or _wrong_rope(config, form) or _wrong_layer(config, form)) is not None:
        raise InputError(
            f"llama.cpp, or transformers that reads the file back, would compute this {config.model_type} differently "
            f"({wrong}), so it cannot be written as GGUF; use --format merged"
        )
    return form


def _wrong_rope(config: Any, form: Form) -> str | None:
    kind = _rope(config).get("rope_type", "default")
    known = ("default", "linear", "llama3") if form.rotated else ("default", "linear")
    return None if kind in known else f"rope_type: {kind}"


def _wrong_layer(config: Any, form: Form) -> str | None:
    """A setting of the layers that a GGUF does not contain: another activation, and biases, which llama.cpp reads for
    some of these networks, but transformers for none."""
    act = getattr(config, "hidden_activation", None) or config.hidden_act
    if act != form.act:
        return f"the activation: {act}, not {form.act}"
    return next((f"{name}: true" for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)), None)


def _layers(config: Any) -> int:
    return config.num_hidden_layers


def _rope(config: Any, layer: str = "full_attention") -> dict[str, Any]:
    """The rotary settings of a network, or of one of its types of layers."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    return dict(found.get(layer) or {}) if layer in found else found


def _head(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_shape(writer: gguf.GGUFWriter, config: Any, form: Form, rows: int) -> None:
    """Writes the sizes of a network with `rows` embeddings."""
    head, rope = _head(config), _rope(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(_layers(config))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    writer.add_vocab_size(rows)
    if form.rotated:
        writer.add_rope_dimension_count(head)
    if form.shifted:
        writer.add_sliding_window(config.sliding_window)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def extra_tensors(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields weights that are not in the network's files: the divisors of Llama 3's rotary frequencies."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return
    head, before = _head(config), rope["original_max_position_embeddings"]
    frequencies = rope["rope_theta"] ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = before * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    yield "rope_freqs.weight", (1 / ((1 - smooth) / factor + smooth)).float()


def written(name: str, weight: Tensor, config: Any, form: Form) -> Tensor:
    """A weight of the library in llama.cpp's form, in float32. `name` is the library's."""
    weight = weight.float()
    if form.shifted and name.endswith("norm.weight"):
        return weight + 1
    if form.rotated and ".self_attn.q_proj." in name:
        return _paired(weight, config.num_attention_heads)
    if form.rotated and ".self_attn.k_proj." in name:
        return _paired(weight, config.num_key_value_heads)
    return weight


def _paired(weight: Tensor, heads: int) -> Tensor:
    """Reorders the rows of each head in pairs (i, i + half), as llama.cpp rotates them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()
