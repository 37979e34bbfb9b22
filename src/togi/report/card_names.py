"""Translates togi's own names of metrics, curves and facts of a model into the languages of a card. Names that users
gave, and names without a translation here, stay as they are."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Names = Mapping[str, Mapping[str, str]]
"""English names -> languages -> names."""

_NAMES: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
METRICS: Names = _NAMES["metrics"]
FIGURES: Names = _NAMES["figures"]
"""Columns of benchmarks; those that METRICS has are not here."""
PARTS: Names = _NAMES["parts"]
LABELS: Names = _NAMES["labels"]
CURVES: Names = _NAMES["curves"]
"""Titles of `togi.report.curves`."""
BEGINNINGS: Names = _NAMES["beginnings"]
NOTES: list[Mapping[str, str]] = _NAMES["notes"]
LANGUAGES = ("ja", "ru")


def metric(name: str, language: str) -> str:
    """The name of a metric, or of a benchmark's column."""
    return _named({**METRICS, **FIGURES}, name, language)


def part(title: str, language: str) -> str:
    """The title of a part of a benchmark."""
    return _named(PARTS, title, language)


def label(name: str, language: str) -> str:
    """The name of a fact about the model or its machine."""
    return _named(LABELS, name, language)


def curve(title: str, language: str) -> str:
    """The title of a curve."""
    return _named(CURVES, title, language)


def note(text: str, language: str) -> str:
    """The note on a metric."""
    if language in LANGUAGES:
        for one in NOTES:
            text = re.sub(one["pattern"], one[language], text)
    return text.replace("; ", "；").replace(";", "；") if language == "ja" else text


def _named(names: Names, name: str, language: str) -> str:
    if language not in LANGUAGES:
        return name
    if name in names:
        return names[name][language]
    for beginning, said in BEGINNINGS.items():
        if name.startswith(beginning):
            return said[language] + _named(names, name.removeprefix(beginning), language)
    return name
