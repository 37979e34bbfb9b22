"""Which settings each loss reads: one set of rules, for recipes and for objectives. Importing this file imports nothing
heavy.

A setting that a loss does not read is a mistake. Each function returns a description of the mistake, or "".
"""

from typing import Any, Literal

Level = Literal["token", "sequence"]

LEVELS: dict[str, Level] = {"luspo": "sequence", "vespo": "token"}
"""The level of losses that are defined on only one."""

UNCLIPPED = ("cispo", "sapo", "vespo")
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust")


def policy_problem(kind: str, *, level: str, max_weight: float | None, correction: Any, **clip: float | None) -> str:
    """Checks a loss over groups of answers. `clip` holds the settings of the clip by name; None if absent."""
    given = [name for name, value in clip.items() if value is not None]
    if kind in UNCLIPPED and given:
        return f"{kind} does not clip, so it does not read {', '.join(given)}; remove it"
    if max_weight is not None and kind != "cispo":
        return f"max_weight applies only to cispo, found type {kind}; remove it"
    if level != LEVELS.get(kind, level):
        return f"{kind} is defined on {LEVELS[kind]}s, found {level}; set level: {LEVELS[kind]}"
    if kind == "vespo" and correction is not None:
        return "vespo already weights whole answers by their ratio; remove sampler_correction"
    return ""


def dpo_problem(kind: str, label_smoothing: float) -> str:
    """Checks a loss over pairs with a reference."""
    if label_smoothing and kind not in SMOOTHED:
        return f"label_smoothing has no effect on loss: {kind}; use {', '.join(SMOOTHED)}"
    return ""


def smpo_problem(kind: str, margin_delta: float | None) -> str:
    """Checks a loss over pairs with a margin."""
    if (kind == "smooth_double_bound") == (margin_delta is not None):
        return ""
    return f"margin_delta belongs to loss: smooth_double_bound, which needs it; found {margin_delta} with {kind}"
