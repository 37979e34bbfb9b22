"""Formats cells of benchmark tables: shares in per cent, an em dash with its count for an undefined value."""

from collections.abc import Mapping, Sequence

from togi.report.formatting import MINUS, number
from togi.report.view import CellView, ColumnView, ToldView, Verdict

NONE = "\N{EM DASH}"
FITTING = 5
"""The most metrics side by side that fit a page of usual width, each with its interval."""


def turned(columns: Sequence[ColumnView], rows: Mapping[str, object], told: Sequence[ToldView]) -> bool:
    """Whether a table has its metrics as rows and its models as columns, because that is narrower."""
    return len(columns) > FITTING and len(rows) + sum(len(table.cells) for table in told) < len(columns)


def words(cell: CellView, column: ColumnView) -> str:
    """The value; a share in per cent."""
    if cell.value is None:
        return NONE
    return _figure(cell.value, column.share)


def bounds(cell: CellView, column: ColumnView) -> str:
    """ "61.2 to 70.4 (448)": the interval with the number of questions and the cell's note."""
    after = ", ".join(filter(None, (f"{cell.n:,}", cell.note)))
    if cell.low is None or cell.high is None:
        return f"({after})"
    return f"{_figure(cell.low, column.share)} to {_figure(cell.high, column.share)} ({after})"


def printed(cell: CellView, column: ColumnView) -> str:
    """The interval of a published figure, "77.6 to 81.7"; empty if the card prints none."""
    if cell.low is None or cell.high is None:
        return ""
    return f"{_figure(cell.low, column.share)} to {_figure(cell.high, column.share)}"


def change(cell: CellView, column: ColumnView) -> str:
    """A difference: "+1.3 (0.2 to 2.4)"."""
    if cell.value is None:
        return NONE
    sign = "+" if cell.value > 0 else ""
    if cell.low is None or cell.high is None:
        return f"{sign}{_figure(cell.value, column.share)}"
    low, high = (_figure(bound, column.share) for bound in (cell.low, cell.high))
    return f"{sign}{_figure(cell.value, column.share)} ({low} to {high})"


def verdict(cell: CellView, column: ColumnView) -> Verdict:
    """The verdict that the interval of a difference supports."""
    if cell.low is None or cell.high is None or cell.value is None or cell.low <= 0 <= cell.high:
        return "unclear"
    if column.higher_is_better is None:
        return "changed"
    return "better" if (cell.value > 0) is column.higher_is_better else "worse"


def _figure(value: float, share: bool) -> str:
    """A share in per cent with one decimal; other numbers with decimals by their size."""
    if share:
        text = f"{100 * value:.1f}"
    else:
        size = abs(value)
        if size and size < 0.0005:
            return number(value)
        text = f"{value:,.0f}" if size >= 1000 else f"{value:.{1 if size >= 100 else 2 if size >= 1 else 3}f}"
    return text.replace("-", MINUS)
