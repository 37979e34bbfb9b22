"""Which settings each loss reads: one set of rules, for recipes and for objectives. Importing this file imports nothing
heavy.

A setting that a loss does not read is a mistake. Each function gives what is wrong, or "".
"""

from typing import Any, Literal

Level = Literal["token", "sequence"]

LEVELS: dict[str, Level] = {"luspo": "sequence", "vespo": "token"}
"""The level that a loss is defined on, where it is only one."""

UNCLIPPED = ("cispo", "sapo", "vespo")
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust")


def policy_problem(kind: str, *, level: str, max_weight: float | None, correction: Any, **clip: float | None) -> str:
    """Of a loss over groups of answers; `clip` are the settings of the clip, by name, None where they are absent."""
    given = [name for name, value in clip.items() if value is not None]
    if kind in UNCLIPPED and given:
        return f"{kind} does not clip, so it does not read {', '.join(given)}; remove it"
    if max_weight is not None and kind != "cispo":
        return f"max_weight is read by cispo alone, found type {kind}; remove it"
    if level != LEVELS.get(kind, level):
        return f"{kind} is defined on {LEVELS[kind]}s, found {level}; set level: {LEVELS[kind]}"
    if kind == "vespo" and correction is not None:
        return "vespo weighs whole answers by their ratio already; remove sampler_correction"
    return ""


def dpo_problem(kind: str, label_smoothing: float) -> str:
    """Of a loss over pairs with a reference."""
    if label_smoothing and kind not in SMOOTHED:
        return f"label_smoothing does nothing to loss: {kind}; use {', '.join(SMOOTHED)}"
    return ""


def smpo_problem(kind: str, margin_delta: float | None) -> str:
    """Of a loss over pairs with a margin."""
    if (kind == "smooth_double_bound") == (margin_delta is not None):
        return ""
    return f"margin_delta belongs to loss: smooth_double_bound, which needs it; found {margin_delta} with {kind}"
