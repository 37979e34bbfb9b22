"""AlpacaEval 2 from stored preferences: the win rate, and the win rate at equal length.

The length-controlled model of Dubois et al. (arXiv 2404.04475) is a logistic regression of the preference on a length
term, the difficulty of the instruction and the model. Its win rate is the mean prediction over the instructions with
the length term at 0: sigmoid(model + difficulty x d_i). Published weights reproduce it exactly; alpaca_fit.py fits own
weights.
"""

import gzip
import importlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from togi.core.errors import InputError
from togi.evaluate.graded import bounds
from togi.evaluate.rows import LARGEST, Read, rows_of, shown
from togi.evaluate.statistics import Interval, mean_interval

COLUMNS = ("model", "i", "preference")
TERMS = ("length", "difficulty", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferred:
    """One model against the baseline, in percent. `n` preferences were read, `missing` were null. The length-controlled
    rate covers all `instructions`, including null ones; its standard error is that of the mean prediction."""

    win_rate: float | None
    interval: Interval | None
    n: int
    missing: int
    instructions: int
    controlled: float | None
    standard_error: float | None
    terms: Mapping[str, float] | None = None

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
            "weights": self.terms and dict(self.terms),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Alpaca:
    """All models of a file. `anchors` are the anchor models of togi's own fit of the weights, with their numbers of
    rows; None without an own fit. `unsettled` are the models whose fit did not converge."""

    rows: int
    models: Mapping[str, Preferred]
    anchors: Mapping[str, int] | None = None
    unsettled: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """What `togi evaluate alpaca --json` prints."""
        missing = sum(model.missing for model in self.models.values())
        unsettled = {"not_converged": list(self.unsettled)} if self.unsettled else {}
        return {
            "benchmark": "alpaca",
            "rows": self.rows,
            "dropped": {"no_preference": missing} if missing else {},
            "own_fit": None if self.anchors is None else {"anchors": dict(self.anchors), **unsettled},
            "models": {name: model.to_json() for name, model in self.models.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One preference: its file and line, its value (None if missing), and how many characters longer the baseline's
    answer is than the model's (None if the row does not say)."""

    where: str
    preference: float | None
    shorter: float | None


Own = Mapping[int, Row]
"""The rows of a model by instruction."""


def read_alpaca(
    preferences: Path, weights: Path | None, difficulty: Path | None, *, fit: bool = False, anchors: Path | None = None
) -> Alpaca:
    """The win rates of a file of preferences (0 to 1, or null), length-controlled with `weights`, or with weights
    fitted to the preferences and to those of `anchors` (`fit`).

    Without `difficulty` that term is left out. InputError for missing columns, two rows for one model and instruction,
    a model without weights, and an instruction without difficulty.
    """
    rows, own = _read(preferences, ("len_baseline", "len_model") if fit else ())
    terms = _weights(weights, list(own)) if weights else {}
    hard = _difficulty(difficulty) if difficulty else None
    anchored = _read(anchors, ("len_baseline", "len_model"))[1] if anchors else {}
    unsettled: list[str] = []
    if fit:
        terms, unsettled = _fitted(own, anchored, hard)
    models = {model: _preferred(found, terms.get(model), hard) for model, found in own.items()}
    counts = {name: len(found) for name, found in anchored.items()}
    return Alpaca(rows=rows, models=models, anchors=counts if fit else None, unsettled=unsettled)


def _read(path: Path, more: Sequence[str]) -> tuple[int, dict[str, dict[int, Row]]]:
    """(number of rows, rows by model and instruction)."""
    own: dict[str, dict[int, Row]] = {}
    rows = 0
    for row in rows_of(path, (*COLUMNS, *more)):
        rows += 1
        model, place = row.text("model"), _instruction(row)
        known = own.setdefault(model, {})
        if place in known:
            raise InputError(
                f"{row.where}: model {model}, i {place}: duplicate of {known[place].where}; keep one of them"
            )
        lengths = [length for name in more if (length := row.number(name, 0.0)) is not None]
        shorter = lengths[0] - lengths[1] if len(lengths) == 2 else None
        known[place] = Row(where=row.where, preference=row.number("preference", 0.0, 1.0), shorter=shorter)
    return rows, own


def _fitted(
    own: Mapping[str, Own], anchors: Mapping[str, Own], hard: list[float] | None
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """(weights fitted to each model's preferences, the models whose fit did not converge)."""
    work = importlib.import_module("togi.evaluate.alpaca_fit")
    held = [_judged(work, rows, hard) for rows in anchors.values()]
    fits = {model: work.fit_terms(_judged(work, rows, hard), held, model) for model, rows in own.items()}
    terms = {model: terms for model, (terms, _) in fits.items()}
    return terms, [model for model, (_, converged) in fits.items() if not converged]


def _judged(work: Any, rows: Own, hard: list[float] | None) -> Any:
    """The rows that have a preference, as arrays."""
    known = {place: row for place, row in rows.items() if row.preference is not None}
    for row in known.values():
        if row.shorter is None:
            raise InputError(f"{row.where}: len_baseline, len_model: found null; a fit needs both lengths")
    return work.Judged(
        preference_N=np.array([row.preference for row in known.values()], dtype=np.float64),
        shorter_N=np.array([row.shorter for row in known.values()], dtype=np.float64),
        hard_N=None if hard is None else _hard(known, hard),
    )


def _hard(found: Own, hard: list[float]) -> np.ndarray:
    """The difficulty of each instruction."""
    for place, row in found.items():
        if place >= len(hard):
            raise InputError(
                f"{row.where}: i: instruction {place} has no difficulty; the difficulty file has instructions 0 to "
                f"{len(hard) - 1}"
            )
    return np.array([hard[place] for place in found])


def _instruction(row: Read) -> int:
    place = row.number("i")
    if place is None or place != int(place) or place < 0:
        raise InputError(
            f"{row.where}: i: found {shown(row.values['i'])}; expected the index of an instruction, from 0"
        )
    return int(place)


def _preferred(found: Own, terms: Mapping[str, float] | None, hard: list[float] | None) -> Preferred:
    known = 100 * np.array([row.preference for row in found.values() if row.preference is not None])
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
        terms=terms,
    )


def _predictions(found: Own, terms: Mapping[str, float], hard: list[float] | None) -> np.ndarray:
    """The win probability on each instruction at equal length."""
    if hard is None:
        return expit(np.full(len(found), terms["model"]))
    return expit(terms["model"] + terms["difficulty"] * _hard(found, hard))


def _weights(path: Path, models: list[str]) -> dict[str, dict[str, float]]:
    """The weights of each model: {MODEL: {length, difficulty, model}}."""
    value = _json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: found {shown(value)}; expected an object of models with {', '.join(TERMS)}")
    for model in models:
        if model not in value:
            raise InputError(f"{path}: no weights for model {model}; found {', '.join(list(value)[:8])}")
        terms = value[model] if isinstance(value[model], dict) else {}
        for term in TERMS:
            if not _is_number(terms.get(term)):
                found = shown(terms.get(term)) if term in terms else ", ".join(terms) or shown(value[model])
                raise InputError(
                    f"{path}: {model}: {term}: found {found}; a model needs the numbers {', '.join(TERMS)}"
                )
    return {model: {term: float(value[model][term]) for term in TERMS} for model in models}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _json(path: Path) -> Any:
    """The value of a JSON file, which may be gzipped (.gz). Raises InputError if it cannot be read."""
    packed = path.name.lower().endswith(".gz")
    try:
        content = path.read_bytes()
        return json.loads((gzip.decompress(content) if packed else content).decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        kind = "not a gzipped JSON file, or damaged" if packed else "not a JSON file"
        raise InputError(f"{path}: {kind} ({error})") from None


def _difficulty(path: Path) -> list[float]:
    """The difficulty of each instruction: {"instruction_difficulty": [...]}, or only the list."""
    value = _json(path)
    found = value.get("instruction_difficulty") if isinstance(value, dict) else value
    if not isinstance(found, list) or not found:
        keys = ", ".join(list(value)[:8]) if isinstance(value, dict) else shown(value)
        raise InputError(f'{path}: found {keys}; expected {{"instruction_difficulty": [numbers]}}')
    for place, one in enumerate(found):
        if not _is_number(one):
            raise InputError(f"{path}: the difficulty of instruction {place}: found {shown(one)}; expected a number")
    return [float(d) for d in found]
