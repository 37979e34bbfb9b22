"""Names of settings and values in TRL, axolotl, LLaMA-Factory, OpenRLHF and verl, and togi's for the same thing."""

import tomllib
from pathlib import Path
from typing import Any

_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

FOREIGN: dict[str, tuple[str, ...]] = {name: tuple(row["ours"]) for row in _TABLE["settings"] for name in row["theirs"]}
"""Names of settings in other tools -> ours, dotted if ours is nested; the first that exists at the place is meant."""

MORE: dict[str, str] = {name: row["note"] for row in _TABLE["settings"] if "note" in row for name in row["theirs"]}
"""Notes on some of these settings."""

ELSEWHERE = frozenset(name for row in _TABLE["settings"] if row.get("elsewhere") for name in row["theirs"])
"""Those whose counterpart belongs to another place, which the note names."""

ABSENT: dict[str, str] = {name: row["note"] for row in _TABLE["absent"] for name in row["theirs"]}
"""Settings without a counterpart in togi, with advice."""

VALUES: dict[str, str] = {value: ours for ours, theirs in _TABLE["values"].items() for value in theirs}
"""Values in other tools -> ours."""
