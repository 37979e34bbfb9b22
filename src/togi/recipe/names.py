"""The rule for names: of a recipe, and of its models, data and stages."""

import re

from togi.core.locks import LOCK

NAME = r"^[A-Za-z_][A-Za-z0-9_-]{0,99}$"
RULE = "a Latin letter or _ first, then Latin letters, digits, _ and -, at most 100 of them"
RESERVED = (LOCK,)
"""Files in a run's folder, next to its stages; other files there have a dot in their names."""
SHOWN = 100  # characters of an invalid name


def misnamed(name: str, example: str = "my_stage") -> str:
    """Why a name cannot be used, with one that can; empty if it can."""
    if name in RESERVED:
        return f"{name!r} is the name of a file in the run's folder; choose another"
    if re.fullmatch(NAME, name):
        return ""
    shown = repr(name) if len(name) <= SHOWN else f"{repr(name)[:SHOWN]}..."
    return f"{shown} is not a name: {RULE}; for example {_like(name) or example}"


def _like(name: str) -> str:
    """A valid name that resembles this one; empty if too little of it is left."""
    kept = re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_-")[:99]
    if not kept or sum(map(str.isalnum, kept)) * 2 < len(name):
        return ""
    return kept if kept[0].isalpha() else f"_{kept}"


def run_name(name: str) -> str:
    """The name of a recipe. Raises ValueError for one that cannot be used."""
    if wrong := misnamed(name, "my_run"):
        raise ValueError(wrong)
    return name
