"""Text tables of stored verdicts and grades: each figure with its interval and counts, an em dash for none."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from togi.commands.new_folder import writable
from togi.core.errors import RecipeError
from togi.core.files import write_text
from togi.evaluate.alpaca import Alpaca, read_alpaca
from togi.evaluate.arena import (
    Arena,
    Draw,
    Rows,
    find_baseline,
    rank,
    read_battles,
    strengths,
    with_leaks,
    with_tokens,
)
from togi.evaluate.arena_files import (
    Rules,
    length_controlled,
    mean_tokens,
    read_judgments,
    read_leaked,
    read_lengths,
    read_styles,
    write_battles,
)
from togi.evaluate.arena_style import Control, StyleControl, controlled_strengths, rank_controlled
from togi.evaluate.graded import Bench, Graded, read_graded
from togi.evaluate.published import Published, published, tables
from togi.evaluate.statistics import Interval
from togi.report.formatting import plural
from togi.report.leaderboard import Place, leaderboard

NONE = "\N{EM DASH}"
TOKENS = "mean tokens"
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The inputs of an arena: battles, or judgments read by `rules`; answers, whose lengths and styles are controlled
    for; and the questions that models were trained on."""

    battles: Path | None
    judgments: Path | None
    rules: Rules
    baseline: str | None
    answers: Path | None
    length_control: bool
    style_control: Control | None
    leaked: Path | None
    save_battles: Path | None


def arena_of(options: dict[str, Any]) -> Arena:
    """The leaderboard for command-line options: those of `Sources`, and `resample`, `rounds`, `seed` and `level`."""
    draw = Draw(**{name: options.pop(name) for name in ("rounds", "seed", "level")}, by=options.pop("resample"))
    return arena(Sources(**options), draw)


def arena(sources: Sources, draw: Draw) -> Arena:
    """The leaderboard of stored battles or judgments. Raises RecipeError for options that do not go together."""
    _refuse(sources)
    rows = _rows(sources)
    lengths = read_lengths(sources.answers) if sources.answers else {}
    if sources.length_control:
        rows = length_controlled(rows, lengths, find_baseline(rows, sources.baseline))
    if sources.save_battles:
        with writable(sources.save_battles, "file"):
            write_battles(sources.save_battles, rows)
    fit = strengths
    if sources.style_control and sources.answers:
        styles = read_styles(sources.answers)
        control = StyleControl(control=sources.style_control, rules=sources.rules, styles=styles)
        found, fit = rank_controlled(rows, control, draw, baseline=sources.baseline), controlled_strengths(control)
    else:
        found = rank(rows, baseline=sources.baseline, **asdict(draw))
    if sources.leaked:
        found = with_leaks(found, rows, read_leaked(sources.leaked), fit)
    return with_tokens(found, mean_tokens(lengths)) if lengths else found


def _refuse(sources: Sources) -> None:
    if (sources.battles is None) == (sources.judgments is None):
        raise RecipeError("command line: give either --battles FILE or --judgments PATH")
    if sources.length_control and sources.answers is None:
        raise RecipeError("command line: --length-control needs the lengths of answers: give --answers PATH")
    if sources.style_control and sources.answers is None:
        raise RecipeError("command line: --style-control needs the answers: give --answers PATH")
    if sources.style_control and sources.length_control:
        raise RecipeError(
            "command line: --length-control and --style-control both control length: give only one of them"
        )


def _rows(sources: Sources) -> Rows:
    if sources.battles is not None:
        return read_battles(sources.battles)
    assert sources.judgments is not None
    return read_judgments(sources.judgments, sources.rules, sources.baseline)


def table_of(name: str | None, metric: str) -> Published | None:
    """The published table with this name. Raises RecipeError if there is none with the metric."""
    if name is None:
        return None
    if name not in tables() or metric not in [each.name for each in tables()[name].metrics]:
        fitting = [known for known, one in tables().items() if metric in [each.name for each in one.metrics]]
        raise RecipeError(f"--published {name}: there is no such table of a {metric}; allowed are {', '.join(fitting)}")
    return published(name)


def source_note(told: Published) -> str:
    """The source of published rows."""
    return f"published: {told.title}, {told.how}; {told.source}"


def save_plot(path: Path, found: Arena, told: Published | None = None) -> None:
    """Writes the leaderboard as an SVG plot, with published rows hollow."""
    places = [Place(name=name, rate=one.win_rate, low=one.low, high=one.high) for name, one in found.standings.items()]
    if told:
        known = told.column("win rate").items()
        places += [Place(name=name, rate=one.value, low=one.low, high=one.high, told=True) for name, one in known]
    title = f"Win rate against {found.baseline}, %, with {100 * found.level:g} % intervals"
    with writable(path, "file"):
        write_text(path, leaderboard(title, places))


def alpaca(
    preferences: Path, weights: Path | None, difficulty: Path | None, *, fit: bool = False, anchors: Path | None = None
) -> Alpaca:
    """The win rates of a file of preferences. Raises RecipeError for options that do not go together."""
    if fit and weights:
        raise RecipeError("command line: --weights reads weights, --fit computes them: give only one of them")
    if anchors and not fit:
        raise RecipeError("command line: --anchors needs --fit")
    return read_alpaca(preferences, weights, difficulty, fit=fit, anchors=anchors)


def graded(scores: Path, scales: Sequence[str]) -> Graded:
    """The means of a file of scores; `scales` are words such as BENCH=2. Raises RecipeError for others, and for two
    factors of one benchmark."""
    factors = dict(map(_scale, scales))
    if len(factors) < len(scales):
        raise RecipeError(f"--scale: found {', '.join(scales)}; give one factor for each benchmark")
    return read_graded(scores, factors)


LARGEST_FACTOR = 1e50
"""Largest factor. Reading the grades then refuses products that are too large."""


def _scale(word: str) -> tuple[str, float]:
    name, _, factor = word.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = 0.0
    if not name or not 0 < value < LARGEST_FACTOR:
        raise RecipeError(f"--scale {word}: allowed is BENCH=FACTOR with a factor above 0, such as {name or 'BENCH'}=2")
    return name, value


# --- in words ---------------------------------------------------------------------------------------------------------


def arena_table(found: Arena, told: Published | None = None) -> Table:
    """Columns and rows of a leaderboard, published rows last. Columns without any value are left out."""
    optional = [
        (title, [None if (value := of(one)) is None else figure(value, digits) for one in found.standings.values()])
        for title, digits, of in (
            ("uncontrolled %", 1, lambda one: one.uncontrolled),
            (TOKENS, 0, lambda one: one.tokens),
            ("leaked", 0, lambda one: one.leaked),
            ("on the others %", 1, lambda one: one.unleaked),
        )
    ]
    shown = [(title, cells) for title, cells in optional if any(cell is not None for cell in cells)]
    rows: list[Sequence[str]] = [
        (
            f"{name} (baseline)" if name == found.baseline else name,
            figure(one.win_rate, 1),
            NONE if name == found.baseline else span(one.low, one.high, 1),
            figure(one.elo, 0),
            f"{one.n:,}",
            f"{one.wins:,} / {one.ties:,} / {one.losses:,}",
            NONE if one.questions is None else f"{one.questions:,}",
            *(cells[place] or NONE for _, cells in shown),
        )
        for place, (name, one) in enumerate(found.standings.items())
    ]
    if told:
        tokens = told.column(TOKENS) if TOKENS in [each.name for each in told.metrics] else {}
        for name, one in told.column("win rate").items():
            more = [figure(tokens[name].value, 0) if tokens and title == TOKENS else NONE for title, _ in shown]
            rows.append((f"{name} (published)", figure(one.value, 1), span(one.low, one.high, 1), *[NONE] * 4, *more))
    interval = f"{100 * found.level:g} % interval"
    columns = ("model", "win rate %", interval, "Elo", "rows", "won / tied / lost", "questions")
    return (*columns, *(title for title, _ in shown)), rows


def arena_notes(found: Arena) -> list[str]:
    """Notes on the leaderboard."""
    what = {
        "question": "questions with all their games (BCa)",
        "row": "rows (percentiles)",
        "model": "rows of each pair of models (percentiles)",
    }[found.resampled]
    ranked = list(found.standings.values())
    notes = [f"{found.rows:,} rows; intervals from {found.rounds:,} bootstrap rounds over {what}"]
    if found.style:
        effects = ", ".join(f"{name} {value:+.2f}" for name, value in found.style.items())
        notes.append(f"style: effect of one standard deviation on the log odds of a win: {effects}")
    notes += [f"dropped: {plural(count, 'row')}, {reason}" for reason, count in found.dropped.items()]
    notes += [
        f"{name} judged {plural(count, 'game')} of its own: judges favour answers like their own"
        for name, count in found.self_judged.items()
    ]
    if any(one.leaked is not None and one.unleaked is None and one.win_rate is not None for one in ranked):
        notes.append(f"{NONE}: the battles on the other questions are too few for a win rate")
    if any(one.win_rate is None for one in ranked):
        notes.append(f"{NONE}: no chain of battles connects the model to {found.baseline}")
    elif any(one.elo is None for one in ranked):
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


def alpaca_notes(found: Alpaca) -> list[str]:
    """Notes on the win rates."""
    notes = [f"{found.rows:,} rows; Student's t intervals over instructions"]
    if found.unsettled:
        notes.append(
            f"the fit of {', '.join(found.unsettled)} did not converge: length explains the preferences almost "
            "without error, or they are too few; the length-controlled rate is not reliable"
        )
    if found.anchors is None:
        return notes
    if not found.anchors:
        return [
            *notes,
            "weights fitted here, without anchors: not comparable with published length-controlled rates, whose "
            "fit has two",
        ]
    named = ", ".join(f"{name} ({plural(count, 'row')})" for name, count in found.anchors.items())
    return [*notes, f"weights fitted here, with anchors {named}"]


def graded_table(found: Graded, told: Published | None = None) -> Table:
    """Columns and rows of means, best first; the unweighted mean of all benchmarks last. Published rows are below."""
    order = sorted(found.benches, key=lambda model: -(found.means[model][0] or 0.0))
    rows = []
    for model in order:
        mean, interval = found.means[model]
        cells = [_bench(found.benches[model].get(name)) for name in found.names]
        last = NONE if mean is None else f"{mean:.2f} {_within(interval)}".rstrip()
        rows.append((model, *cells, last))
    if told:
        known = told.column("score").items()
        rows += [(f"{name} (published)", *[NONE] * len(found.names), figure(one.value, 2)) for name, one in known]
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
    """A number with `digits` decimals; an em dash for None."""
    return NONE if value is None else f"{value:,.{digits}f}"


def span(low: float | None, high: float | None, digits: int) -> str:
    """Bounds, or an em dash if there are none."""
    return NONE if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
