"""Presets: published settings under a name, which a recipe may still change key by key."""

from collections.abc import Mapping
from typing import Any


def fill(values: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """`values` over those of the preset that they name under `preset`; maps are merged, everything else is replaced,
    and `steps` of the recipe's own stand in place of the preset's `epochs`.

    A name that no preset has is left for the type of `preset` to refuse.
    """
    name = values.get("preset") if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in presets:
        return values
    preset = presets[name]
    if values.get("steps") is not None:
        preset = {key: value for key, value in preset.items() if key != "epochs"}
    return _over(preset, values)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key, value in below.items():
        if isinstance(value, Mapping) and isinstance(above.get(key), Mapping):
            merged[key] = _over(value, above[key])
    return merged
