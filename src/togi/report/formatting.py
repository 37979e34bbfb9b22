"""Formats numbers and durations, and writes the sentences that summarise a run."""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from togi.report.view import IntervalView, RowView, RunView

MINUS = "\N{MINUS SIGN}"
VALUE_CHARACTERS = 2000
DAY = 86_400


def number(value: float | None, *, signed: bool = False) -> str:
    """A number with three significant digits and thousands separators; a dash for None."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    size = abs(value)
    if math.isinf(value):
        text = "∞"
    elif size and size < 0.001:
        text = f"{size:.1e}".replace("e-0", "e-").replace("-", MINUS)
    elif size >= 100 or size == int(size):
        text = f"{size:,.0f}" if size < 1e9 else f"{size:.2e}"
    else:
        text = f"{size:.{3 if size < 1 else 2 if size < 10 else 1}f}"
    sign = MINUS if value < 0 else "+" if signed and value > 0 else ""
    return sign + text


def whole(count: int) -> str:
    """A count with thousands separators."""
    return f"{count:,}"


def duration(seconds: float | None) -> str:
    """ "0.4 s", "12 s", "3 min 05 s", "2 h 14 min", "24 days 3 h"; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 2 * DAY:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // DAY:,} days {whole % DAY // 3600} h"


def moment(seconds: float | None) -> str:
    """A point in time, such as "2026-03-01 09:30 UTC"; empty for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def bounds(interval: IntervalView, *, signed: bool = False) -> str:
    """ "0.82 to 0.91" """
    return f"{number(interval.low, signed=signed)} to {number(interval.high, signed=signed)}"


def percent(level: float) -> str:
    """A confidence level: "95 %"."""
    return f"{level * 100:.4g}\N{NO-BREAK SPACE}%"


def plural(count: int, one: str) -> str:
    """ "1 alarm", "2 alarms" """
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted key, readable value)."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flat(item, f"{prefix}{key}.")
        else:
            text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            yield f"{prefix}{key}", text if len(text) <= VALUE_CHARACTERS else text[:VALUE_CHARACTERS] + " …"


def outcome(run: RunView) -> str:
    """One sentence on the state of the run."""
    done = sum(stage.state == "done" for stage in run.stages)
    cached = sum(stage.cached for stage in run.stages)
    if run.state == "done":
        kept = f", {cached} of them from the cache" if cached else ""
        return f"All {plural(len(run.stages), 'stage')} are done{kept}, in {duration(_total(run))} of work."
    place = f"{done} of {plural(len(run.stages), 'stage')} done"
    if run.state == "failed":
        failed = next((stage.name for stage in run.stages if stage.state == "failed"), None)
        return f"Failed{f' at stage “{failed}”' if failed else ''} with {place}. Finished work is saved."
    if run.state == "interrupted":
        return f"Interrupted with {place}. Finished work is saved: the same command resumes from here."
    return f"Running, {place}."


def highlights(run: RunView) -> list[RowView]:
    """The rows to highlight: the first three that are clearly better or clearly worse."""
    return [row for row in run.rows if row.verdict in ("better", "worse")][:3]


def findings(run: RunView) -> str:
    """The key result: all metrics, grouped by verdict; empty without a comparison."""
    compared = [row for row in run.rows if row.difference is not None]
    if not compared:
        return ""
    groups = (("Clearly better", "better"), ("Clearly worse", "worse"), ("No clear difference", "unclear"))
    named = [(words, [row.metric for row in compared if row.verdict == verdict]) for words, verdict in groups]
    sentences = [f"{words}: {', '.join(metrics)}." for words, metrics in named if metrics]
    levels = {row.difference.level for row in compared if row.difference}
    return " ".join(
        [*sentences, f"Clear means that the {' or '.join(map(percent, sorted(levels)))} interval excludes zero."]
    )


def compared(run: RunView) -> list[tuple[str, str, str, str, str]]:
    """The before/after table as text: metric, before, after, difference with its interval, verdict. Rows without a
    "before" are left out."""
    return [table_row(row) for row in run.rows if row.base is not None]


def table_row(row: RowView) -> tuple[str, str, str, str, str]:
    """A row of the before/after table as text; a dash for a missing value."""
    base, difference = row.base, row.difference
    change = (
        "–" if difference is None else f"{number(difference.mean, signed=True)} ({bounds(difference, signed=True)})"
    )
    before = number(None if base is None else base.mean)
    return row.metric, before, number(row.policy.mean), change, row.verdict or ""


def measured_row(row: RowView) -> tuple[str, str, str, str]:
    """A row of a table without a comparison: metric, value, interval, count."""
    return row.metric, number(row.policy.mean), bounds(row.policy), f"{row.policy.n:,}"


def _total(run: RunView) -> float:
    return sum(stage.seconds or 0.0 for stage in run.stages)
