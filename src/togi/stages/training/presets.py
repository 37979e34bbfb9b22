"""Presets: published settings under a name. A recipe can override each key."""

from collections.abc import Mapping
from typing import Any


def fill(values: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """Lays `values` over the preset that they name under `preset`. Mappings are merged, other values replaced; `steps`
    in `values` replaces the preset's `epochs`.

    An unknown name is left as it is, for the validation of `preset` to reject.
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
