"""Graded benchmarks from stored scores: for each model, the mean of each benchmark and the mean of all.

Layout: one row per answer with `model`, `bench`, `i` (the question) and `score`. A null score is a judge's reply that
could not be parsed. It is dropped and counted, never a zero (shisa-ai's shaberi, llm-jp-judge).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from togi.core.errors import InputError
from togi.evaluate.rows import LARGEST, Read, rows_of, shown
from togi.evaluate.statistics import Interval, cluster_mean, mean_of_means

COLUMNS = ("model", "bench", "i", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The grades of a model on one benchmark: `n` were read, `failures` could not be parsed. `questions` is the number
    of different `i`; rows with the same `i` are several grades of one question. `mean` is None without grades."""

    mean: float | None
    interval: Interval | None
    n: int
    questions: int
    failures: int

    def to_json(self) -> dict[str, Any]:
        """As JSON-like values."""
        counts = {"n": self.n, "failures": self.failures, "questions": self.questions}
        return {"mean": self.mean, **counts, **bounds(self.interval)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """All models: `benches` by model and benchmark. `means` holds the unweighted mean of each model's benchmarks, None
    if it lacks a benchmark that others have, or grades for one."""

    rows: int
    failures: int
    names: tuple[str, ...]
    benches: Mapping[str, Mapping[str, Bench]]
    means: Mapping[str, tuple[float | None, Interval | None]]

    def to_json(self) -> dict[str, Any]:
        """What `togi evaluate graded --json` prints."""
        models = {
            model: {
                "n": sum(bench.n for bench in own.values()),
                "benches": {name: bench.to_json() for name, bench in own.items()},
                "mean": self.means[model][0],
                **bounds(self.means[model][1]),
            }
            for model, own in self.benches.items()
        }
        dropped = {"parse_failure": self.failures} if self.failures else {}
        return {"benchmark": "graded", "rows": self.rows, "dropped": dropped, "models": models}


def bounds(found: Interval | None) -> dict[str, float | None]:
    """The bounds of an interval; null without one."""
    return {"low": found.low if found else None, "high": found.high if found else None}


def read_graded(path: Path, scales: Mapping[str, float]) -> Graded:
    """The means of a file of scores; scores of a benchmark in `scales` are multiplied by its factor.

    InputError for missing columns, scores that are not numbers, and a scale for an unknown benchmark.
    """
    scores: dict[str, dict[str, list[tuple[str, float | None]]]] = {}
    names: dict[str, None] = {}
    rows = 0
    for row in rows_of(path, COLUMNS):
        rows += 1
        model, bench = row.text("model"), row.text("bench")
        names.setdefault(bench)
        score = _scaled(row, scales.get(bench, 1.0))
        scores.setdefault(model, {}).setdefault(bench, []).append((row.text("i"), score))
    unknown = [name for name in scales if name not in names]
    if unknown:
        raise InputError(f"--scale {unknown[0]}: no such benchmark in {path}; found {', '.join(names)}")
    benches = {model: {name: _bench(own[name]) for name in names if name in own} for model, own in scores.items()}
    means = {model: _mean([own.get(name) for name in names]) for model, own in benches.items()}
    failures = sum(bench.failures for own in benches.values() for bench in own.values())
    return Graded(rows=rows, failures=failures, names=tuple(names), benches=benches, means=means)


def _scaled(row: Read, scale: float) -> float | None:
    """The score of a row times `scale`. InputError if the product is too large for the statistics."""
    score = row.number("score")
    if score is None:
        return None
    if abs(score * scale) > LARGEST:
        raise InputError(
            f"{row.where}: score: found {shown(row.values['score'])}, times --scale {scale:g}; expected a product from "
            f"{-LARGEST:g} to {LARGEST:g}"
        )
    return score * scale


def _bench(scores: list[tuple[str, float | None]]) -> Bench:
    known = [(question, score) for question, score in scores if score is not None]
    questions = [question for question, _ in known]
    values = np.array([value for _, value in known])
    return Bench(
        mean=float(values.mean()) if known else None,
        interval=cluster_mean(values, questions) if known else None,
        n=len(known),
        questions=len(dict.fromkeys(questions)),
        failures=len(scores) - len(known),
    )


def _mean(benches: list[Bench | None]) -> tuple[float | None, Interval | None]:
    parts = [(bench.mean, bench.interval) for bench in benches if bench is not None and bench.mean is not None]
    if len(parts) < len(benches):
        return None, None
    return sum(mean for mean, _ in parts) / len(parts), mean_of_means(parts)
