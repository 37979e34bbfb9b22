"""Makes configurations readable for transformers 4.51 too: version 5 renamed and moved some keys.

The new keys stay, and the old ones are added with the same values.
"""

from collections.abc import Mapping
from typing import Any

FAST = "PreTrainedTokenizerFast"
NEW_CLASSES = ("TokenizersBackend", "PythonBackend")  # only in version 5
INPUTS = ["input_ids", "attention_mask"]
FULL, WINDOWED = "full_attention", "sliding_attention"


def readable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config.json with the keys of version 4."""
    made = {**config, **_rope(config), **_windows(config)}
    if "dtype" in config:
        made["torch_dtype"] = config["dtype"]
    if isinstance(config.get("text_config"), dict):
        made["text_config"] = readable_config(config["text_config"])
    return made


def readable_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's tokenizer_config.json with the class and the list of special tokens that version 4 knows. That class
    also returns token types unless told which inputs the model has, and no decoder has those."""
    made = {**config, "model_input_names": INPUTS}
    if made.get("tokenizer_class") in NEW_CLASSES:
        made["tokenizer_class"] = FAST
    if isinstance(made.get("extra_special_tokens"), list):
        made["additional_special_tokens"] = made.pop("extra_special_tokens")
    return made


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as `rope_theta` and `rope_scaling`; windowed layers have a separate key."""
    found = config.get("rope_parameters")
    if not isinstance(found, dict):
        return {}
    by_layer = isinstance(found.get(FULL), dict)
    whole = found[FULL] if by_layer else found
    made = {key: whole[key] for key in ("rope_theta", "partial_rotary_factor") if key in whole}
    if whole.get("rope_type", "default") != "default":
        made["rope_scaling"] = {key: value for key, value in whole.items() if key not in made}
    if by_layer and "rope_theta" in found.get(WINDOWED, {}):
        made["rope_local_base_freq"] = found[WINDOWED]["rope_theta"]
    return made


def _windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_types` as the distance between layers with full attention, if all distances are equal."""
    layers = config.get("layer_types") or []
    if WINDOWED not in layers:
        return {}
    distance = layers.index(FULL) + 1 if FULL in layers else len(layers) + 1
    regular = [WINDOWED if (i + 1) % distance else FULL for i in range(len(layers))]
    return {"sliding_window_pattern": distance} if regular == layers else {}
