"""Tables of stored verdicts and grades for people: each figure with its interval and counts, an em dash for none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from togi.core.errors import InputError, RecipeError
from togi.core.files import write_text
from togi.evaluate.alpaca import Alpaca, read_alpaca
from togi.evaluate.arena import Arena, find_baseline, rank, read_battles
from togi.evaluate.arena_files import (
    Rules,
    length_controlled,
    mean_tokens,
    read_judgments,
    read_lengths,
    write_battles,
)
from togi.evaluate.graded import Bench, Graded, read_graded
from togi.evaluate.statistics import Interval
from togi.report.formatting import plural
from togi.report.leaderboard import Place, leaderboard

NONE = "\N{EM DASH}"
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What an arena is ranked from: battles, or judgments read by `rules`; answers, whose lengths control it."""

    battles: Path | None
    judgments: Path | None
    rules: Rules
    baseline: str | None
    answers: Path | None
    length_control: bool
    save_battles: Path | None


def arena(sources: Sources, by: Literal["question", "row"], rounds: int, seed: int) -> Arena:
    """The leaderboard of stored battles or judgments. RecipeError for options that do not go together."""
    if (sources.battles is None) == (sources.judgments is None):
        raise RecipeError("command line: give either --battles FILE or --judgments PATH")
    if sources.length_control and sources.answers is None:
        raise RecipeError("command line: --length-control needs the lengths of answers: give --answers PATH")
    if sources.battles is not None:
        rows = read_battles(sources.battles)
    else:
        assert sources.judgments is not None
        rows = read_judgments(sources.judgments, sources.rules, sources.baseline)
    lengths = read_lengths(sources.answers) if sources.answers else {}
    if sources.length_control:
        rows = length_controlled(rows, lengths, find_baseline(rows, sources.baseline))
    if sources.save_battles:
        with _writable(sources.save_battles):
            write_battles(sources.save_battles, rows)
    tokens = mean_tokens(lengths)
    return rank(rows, baseline=sources.baseline, by=by, rounds=rounds, seed=seed, tokens=tokens)


def save_plot(path: Path, found: Arena) -> None:
    """Writes the leaderboard as a picture (SVG)."""
    places = [Place(name=name, rate=one.win_rate, low=one.low, high=one.high) for name, one in found.standings.items()]
    title = f"Win rate against {found.baseline}, %, with 95 % intervals"
    with _writable(path):
        write_text(path, leaderboard(title, places))


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def alpaca(preferences: Path, weights: Path | None, difficulty: Path | None) -> Alpaca:
    """The win rates of a file of preferences."""
    return read_alpaca(preferences, weights, difficulty)


def graded(scores: Path, scales: Sequence[str]) -> Graded:
    """The means of a file of scores; `scales` are words such as BENCH=2. RecipeError for others."""
    return read_graded(scores, dict(map(_scale, scales)))


def _scale(word: str) -> tuple[str, float]:
    name, _, factor = word.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = 0.0
    if not name or not 0 < value < float("inf"):
        raise RecipeError(f"--scale {word}: allowed is BENCH=FACTOR with a factor above 0, such as {name or 'BENCH'}=2")
    return name, value


# --- in words ---------------------------------------------------------------------------------------------------------


def arena_table(found: Arena) -> Table:
    """Columns and rows of a leaderboard."""
    measured = any(one.tokens is not None for one in found.standings.values())
    rows = [
        (
            f"{name} (baseline)" if name == found.baseline else name,
            figure(one.win_rate, 1),
            NONE if name == found.baseline else span(one.low, one.high, 1),
            figure(one.elo, 0),
            f"{one.n:,}",
            f"{one.wins:,} / {one.ties:,} / {one.losses:,}",
            NONE if one.questions is None else f"{one.questions:,}",
            *([figure(one.tokens, 0)] if measured else []),
        )
        for name, one in found.standings.items()
    ]
    columns = ("model", "win rate %", "95 % interval", "Elo", "rows", "won / tied / lost", "questions")
    return (*columns, *(["mean tokens"] if measured else [])), rows


def arena_notes(found: Arena) -> list[str]:
    """What a reader of the leaderboard must know."""
    what = {"question": "questions with all their games (BCa)", "row": "rows (percentiles)"}[found.resampled]
    notes = [f"{found.rows:,} rows; intervals from {found.rounds:,} bootstrap rounds over {what}"]
    notes += [f"dropped: {plural(count, 'row')}, {reason}" for reason, count in found.dropped.items()]
    notes += [
        f"{name} judged {plural(count, 'game')} of its own: judges read answers like theirs more kindly"
        for name, count in found.self_judged.items()
    ]
    if any(one.win_rate is None for one in found.standings.values()):
        notes.append(f"{NONE}: no chain of battles connects the model to {found.baseline}")
    elif any(one.elo is None for one in found.standings.values()):
        notes.append(f"{NONE}: a model that won or lost every battle has no Elo")
    return notes


def alpaca_table(found: Alpaca) -> Table:
    """Columns and rows of win rates, best first."""
    rows = [
        (
            name,
            figure(one.win_rate, 2),
            span(*_ends(one.interval), 2),
            figure(one.controlled, 2),
            figure(one.standard_error, 2),
            f"{one.n:,}",
            f"{one.missing:,}",
        )
        for name, one in sorted(found.models.items(), key=lambda item: -(item[1].win_rate or 0.0))
    ]
    return ("model", "win rate %", "95 % interval", "length-controlled %", "standard error", "n", "no preference"), rows


def graded_table(found: Graded) -> Table:
    """Columns and rows of means, best first; the unweighted mean of all benchmarks last."""
    order = sorted(found.benches, key=lambda model: -(found.means[model][0] or 0.0))
    rows = []
    for model in order:
        mean, interval = found.means[model]
        cells = [_bench(found.benches[model].get(name)) for name in found.names]
        last = NONE if mean is None else f"{mean:.2f} {_within(interval)}".rstrip()
        rows.append((model, *cells, last))
    return ("model", *found.names, "mean"), rows


def _bench(bench: Bench | None) -> str:
    if bench is None:
        return f"{NONE} (0)"
    failed = f", {bench.failures} failed" if bench.failures else ""
    if bench.mean is None:
        return f"{NONE} (0{failed})"
    return f"{bench.mean:.2f} {_within(bench.interval)} ({bench.n}{failed})".replace("  ", " ")


def _within(interval: Interval | None) -> str:
    return f"[{interval.low:.2f}, {interval.high:.2f}]" if interval else ""


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval else (None, None)


def figure(value: float | None, digits: int) -> str:
    """A number with so many decimals; an em dash for None."""
    return NONE if value is None else f"{value:,.{digits}f}"


def span(low: float | None, high: float | None, digits: int) -> str:
    """Bounds; an em dash where there are none."""
    return NONE if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
