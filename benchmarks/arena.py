"""Bradley-Terry with a bootstrap: 20,000 battles of 100 models on 500 questions, 1,000 rounds.

    python benchmarks/arena.py [--repeats 3]

Every side reads the same file (JSON Lines) and computes win rates with 95 % intervals. `togi, question` resamples whole
questions with all their games, `togi, row` resamples rows. `evalica` and `arena-hard-auto` resample rows, as their own
scripts do: in each round `DataFrame.sample`, then evalica's bradley_terry, or scikit-learn's logistic regression on
duplicated rows. They run `--peer-rounds` rounds; their seconds are the time per round times 1,000, plus reading. There
are two files: `star`, all models against one, as in arenas; `free`, any two models. Sides are separate processes,
interleaved; medians are compared. Results: results/arena.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import evalica
import numpy as np
import pandas as pd
from harness import RESULTS, console, cpu_facts, revision, show
from sklearn.linear_model import LogisticRegression

from togi.evaluate.arena import rank, read_battles

BATTLES, MODELS, QUESTIONS, ROUNDS, LIMIT = 20_000, 100, 500, 1000, 5.0
BASE = "model-0"
WINNERS = {"model_a": evalica.Winner.X, "model_b": evalica.Winner.Y, "tie": evalica.Winner.Draw}


def battles(layout: str) -> list[dict[str, Any]]:
    """Battles of models with normal strengths; in `star` one side is always the first model. 15 % are ties."""
    draw = np.random.default_rng(17)
    strength = draw.normal(size=MODELS)
    first = np.zeros(BATTLES, dtype=int) if layout == "star" else draw.integers(MODELS, size=BATTLES)
    second = (first + draw.integers(1, MODELS, size=BATTLES)) % MODELS
    won = draw.random(BATTLES) < 1 / (1 + np.exp(strength[second] - strength[first]))
    winner = np.where(draw.random(BATTLES) < 0.15, "tie", np.where(won, "model_a", "model_b"))
    return [
        {"question_id": int(q), "model_a": f"model-{a}", "model_b": f"model-{b}", "winner": str(w)}
        for q, a, b, w in zip(draw.integers(QUESTIONS, size=BATTLES), first, second, winner, strict=True)
    ]


def togi(path: Path, by: Any, rounds: int) -> dict[str, float | None]:
    """The work of `togi evaluate arena`."""
    found = rank(read_battles(path), baseline=BASE, by=by, rounds=rounds)
    return {name: one.elo for name, one in found.standings.items()}


def with_evalica(frame: pd.DataFrame) -> pd.Series:
    """Elo as Ru-Arena computes it."""
    found = evalica.bradley_terry(frame["model_a"], frame["model_b"], frame["winner"].map(WINNERS), tolerance=1e-8)
    elo = 1000 + 400 * np.log10(found.scores)
    return elo - elo[BASE] + 1000


def with_sklearn(frame: pd.DataFrame) -> pd.Series:
    """Elo as arena-hard-auto v0.1 computes it: each row twice, a tie once for each side."""
    names = pd.Series(sorted(pd.concat([frame["model_a"], frame["model_b"]]).unique()))
    place, twice = pd.Series(names.index, index=names), pd.concat([frame, frame], ignore_index=True)
    features = np.zeros((len(twice), len(names)))
    rows = np.arange(len(twice))
    features[rows, place[twice["model_a"]].to_numpy()] = np.log(10)
    features[rows, place[twice["model_b"]].to_numpy()] = -np.log(10)
    won = (twice["winner"] == "model_a").to_numpy(copy=True)
    ties = (twice["winner"] == "tie").to_numpy()
    won[ties & (rows >= len(frame))] = True
    fit = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-8, max_iter=1000).fit(features, won)
    elo = pd.Series(400 * fit.coef_[0] + 1000, index=names)
    return elo - elo[BASE] + 1000


def peer(path: Path, fit: Callable[[pd.DataFrame], pd.Series], rounds: int) -> tuple[float, float, dict[str, float]]:
    """(seconds and processor seconds that 1,000 rounds take, Elo of all rows)."""
    start, worked = time.perf_counter(), time.process_time()
    frame = pd.read_json(path, lines=True)
    elo, read, read_work = fit(frame), time.perf_counter() - start, time.process_time() - worked
    start, worked = time.perf_counter(), time.process_time()
    drawn = [fit(frame.sample(frac=1.0, replace=True, random_state=number)) for number in range(rounds)]
    each, each_work = (time.perf_counter() - start) / rounds, (time.process_time() - worked) / rounds
    pd.DataFrame(drawn).quantile([0.025, 0.975])
    return read + ROUNDS * each, read_work + ROUNDS * each_work, elo.to_dict()


SIDES = ("togi, question", "togi, row", "evalica", "arena-hard-auto")


def measure(side: str, path: Path, rounds: int) -> dict[str, Any]:
    """One repeat, in this process."""
    if side.startswith("togi"):
        togi(path, side.split(", ")[1], 100)
        start = time.perf_counter()
        worked = time.process_time()
        elo = togi(path, side.split(", ")[1], ROUNDS)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        return {"seconds": seconds, "processor_seconds": worked, "elo": elo}
    seconds, worked, elo = peer(path, with_evalica if side == "evalica" else with_sklearn, rounds)
    return {"seconds": seconds, "processor_seconds": worked, "elo": elo}


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=3, help="repeats of each side, interleaved")
    options.add_argument("--peer-rounds", type=int, default=10, help="rounds that the peers run")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        print(json.dumps(measure(given.side, given.file, given.peer_rounds)))
        return
    load, results = cpu_facts()["load_average"], {}
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("star", "free"):
            path = Path(folder) / f"{layout}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in battles(layout)))
            rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for turn in range(given.repeats):
                for side in SIDES[:: 1 if turn % 2 == 0 else -1]:
                    command = [sys.executable, __file__, "--side", side, "--file", str(path)]
                    command += ["--peer-rounds", str(given.peer_rounds)]
                    rows[side].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
            results[layout] = rows
    report(results, given, load)


def _median(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def report(results: dict[str, dict[str, list[dict[str, Any]]]], given: argparse.Namespace, load: float) -> None:
    """Prints and writes the results."""
    summary: dict[str, Any] = {}
    for layout, rows in results.items():
        median = {side: statistics.median(row["seconds"] for row in found) for side, found in rows.items()}
        ours = rows["togi, row"][0]["elo"]
        apart = {side: max(abs(ours[m] - e) for m, e in rows[side][0]["elo"].items()) for side in SIDES}
        summary[layout] = {"median_seconds": median, "largest_difference_in_elo": apart}
        work = {side: _median(rows[side], "processor_seconds") for side in SIDES}
        summary[layout]["median_processor_seconds"] = work
        table = [[side, f"{median[side]:.2f}", f"{work[side]:.2f}", f"{apart[side]:.1e}"] for side in SIDES]
        title = f"{layout}: {BATTLES:,} battles, {MODELS} models, {ROUNDS:,} rounds"
        show(title, ["side", "seconds", "processor's", "Elo apart"], table)
        times = work["evalica"] / work["togi, row"]
        console.print(f"limit {LIMIT} s by question; evalica takes {times:.0f} times the processor's seconds, by row")
    record = {
        "name": "arena",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": {**cpu_facts(), "load_average": load},
        "repeats": given.repeats,
        "peer_rounds": given.peer_rounds,
        **summary,
        "rows": {
            layout: {
                side: [{k: v for k, v in row.items() if k != "elo"} for row in found] for side, found in rows.items()
            }
            for layout, rows in results.items()
        },
    }
    (RESULTS / "arena.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
