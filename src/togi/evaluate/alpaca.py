"""AlpacaEval 2 from stored preferences: the win rate, and the win rate at equal length.

The length-controlled model of Dubois et al. (arXiv 2404.04475) is a logistic regression of the preference on a length
term, the difficulty of the instruction and the model. Its win rate is the mean prediction over the instructions with
the length term at 0: sigmoid(model + difficulty x d_i). With published weights it is exact.
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from togi.core.errors import InputError
from togi.core.files import read_json
from togi.evaluate.graded import bounds
from togi.evaluate.rows import Read, rows_of, shown
from togi.evaluate.statistics import Interval, mean_interval

COLUMNS = ("model", "i", "preference")
TERMS = ("length", "difficulty", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferred:
    """One model against the baseline, in percent. `n` preferences were read, `missing` were null. The length-controlled
    rate covers all of its `instructions`, null ones too; its standard error is that of the mean prediction."""

    win_rate: float | None
    interval: Interval | None
    n: int
    missing: int
    instructions: int
    controlled: float | None
    standard_error: float | None

    def to_json(self) -> dict[str, Any]:
        """As JSON-like values."""
        return {
            "n": self.n,
            "win_rate": self.win_rate,
            **bounds(self.interval),
            "length_controlled_winrate": self.controlled,
            "lc_standard_error": self.standard_error,
            "missing": self.missing,
            "instructions": self.instructions,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Alpaca:
    """All models of a file."""

    rows: int
    models: Mapping[str, Preferred]

    def to_json(self) -> dict[str, Any]:
        """What `togi evaluate alpaca --json` prints."""
        missing = sum(model.missing for model in self.models.values())
        return {
            "benchmark": "alpaca",
            "rows": self.rows,
            "dropped": {"no_preference": missing} if missing else {},
            "models": {name: model.to_json() for name, model in self.models.items()},
        }


def read_alpaca(preferences: Path, weights: Path | None, difficulty: Path | None) -> Alpaca:
    """The win rates of a file of preferences (0 to 1, null where there is none), length-controlled with `weights`.

    Without `difficulty` the predictions leave that term out. InputError for columns that are missing, two rows for one
    model and instruction, a model without weights, and an instruction without difficulty.
    """
    own: dict[str, dict[int, tuple[str, float | None]]] = {}
    rows = 0
    for row in rows_of(preferences, COLUMNS):
        rows += 1
        model, place = row.text("model"), _instruction(row)
        known = own.setdefault(model, {})
        if place in known:
            raise InputError(
                f"{row.where}: model {model}, i {place}: the same as in {known[place][0]}; keep one of them"
            )
        known[place] = (row.where, row.number("preference", 0.0, 1.0))
    terms = _weights(weights, list(own)) if weights else {}
    hard = _difficulty(difficulty) if difficulty else None
    return Alpaca(rows=rows, models={model: _preferred(found, terms.get(model), hard) for model, found in own.items()})


def _instruction(row: Read) -> int:
    place = row.number("i")
    if place is None or place != int(place) or place < 0:
        raise InputError(
            f"{row.where}: i: found {shown(row.values['i'])}; allowed is the index of an instruction, from 0"
        )
    return int(place)


def _preferred(
    found: Mapping[int, tuple[str, float | None]], terms: Mapping[str, float] | None, hard: list[float] | None
) -> Preferred:
    known = 100 * np.array([value for _, value in found.values() if value is not None])
    predicted = 100 * _predictions(found, terms, hard) if terms else np.array([])
    interval = mean_interval(known) if len(known) else None
    return Preferred(
        win_rate=float(known.mean()) if len(known) else None,
        interval=interval
        and Interval(
            mean=interval.mean,
            low=max(0.0, interval.low),
            high=min(100.0, interval.high),
            level=interval.level,
            n=interval.n,
        ),
        n=len(known),
        missing=len(found) - len(known),
        instructions=len(found),
        controlled=float(predicted.mean()) if len(predicted) else None,
        standard_error=float(predicted.std(ddof=1) / len(predicted) ** 0.5) if len(predicted) > 1 else None,
    )


def _predictions(
    found: Mapping[int, tuple[str, float | None]], terms: Mapping[str, float], hard: list[float] | None
) -> np.ndarray:
    """The chance to win each instruction at equal length."""
    if hard is None:
        return expit(np.full(len(found), terms["model"]))
    for place, (where, _) in found.items():
        if place >= len(hard):
            raise InputError(
                f"{where}: i: instruction {place} has no difficulty; the file of difficulties has 0 to {len(hard) - 1}"
            )
    return expit(terms["model"] + terms["difficulty"] * np.array([hard[place] for place in found]))


def _weights(path: Path, models: list[str]) -> dict[str, dict[str, float]]:
    """The weights of each model: {MODEL: {length, difficulty, model}}."""
    value = _json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: found {shown(value)}; allowed is an object of models with {', '.join(TERMS)}")
    for model in models:
        if model not in value:
            raise InputError(f"{path}: no weights of model {model}; found {', '.join(list(value)[:8])}")
        terms = value[model] if isinstance(value[model], dict) else {}
        for term in TERMS:
            if isinstance(terms.get(term), bool) or not isinstance(terms.get(term), int | float):
                found = shown(terms.get(term)) if term in terms else ", ".join(terms) or shown(value[model])
                raise InputError(f"{path}: {model}: {term}: found {found}; a model needs numbers {', '.join(TERMS)}")
    return {model: {term: float(value[model][term]) for term in TERMS} for model in models}


def _json(path: Path) -> Any:
    """The value of a JSON file, which may be packed (.gz). Raises InputError where it cannot be read."""
    if not path.name.lower().endswith(".gz"):
        return read_json(path)
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not a JSON file packed with gzip, or a damaged one ({error})") from None


def _difficulty(path: Path) -> list[float]:
    """The difficulty of each instruction: {"instruction_difficulty": [...]}, or the list alone."""
    value = _json(path)
    found = value.get("instruction_difficulty") if isinstance(value, dict) else value
    if not isinstance(found, list) or not all(isinstance(d, int | float) and not isinstance(d, bool) for d in found):
        keys = ", ".join(list(value)[:8]) if isinstance(value, dict) else shown(value)
        raise InputError(f'{path}: found {keys}; allowed is {{"instruction_difficulty": [numbers]}}')
    return [float(d) for d in found]
