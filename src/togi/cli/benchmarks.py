"""Tables of benchmarks in the terminal: one row per model, each number with its interval and its count."""

from collections.abc import Mapping, Sequence
from typing import Any

from togi.core.tables import say_table
from togi.core.terminal import say
from togi.report.cells import NONE, bounds, change, printed, words
from togi.report.formatting import percent
from togi.report.view import BenchmarkView, CellView, ColumnView, ToldView


def say_benchmark(found: BenchmarkView) -> None:
    """Prints a benchmark: the table, the paired differences from the baseline, the tables of its parts, and notes. An
    undefined figure is an em dash with its count."""
    say(f"\n{found.benchmark}: {found.rows:,} rows, {percent(found.level)} intervals, manifest {found.mark}")
    _say_cells("model", found.columns, found.cells, found.told())
    if found.differences:
        _say_texts(f"minus {found.baseline}, paired", found.columns, _changes(found))
    for part in found.parts:
        say(f"{part.title}{f' ({part.note})' if part.note else ''}")
        _say_cells("model", part.columns, part.cells, found.told(part.title))
    for line in _notes(found):
        say(line)


def _changes(found: BenchmarkView) -> dict[str, dict[str, str]]:
    return {
        name: {column.name: change(row[column.name], column) for column in found.columns if column.name in row}
        for name, row in found.differences.items()
    }


def _say_cells(
    first: str, columns: Sequence[ColumnView], cells: Mapping[str, Mapping[str, CellView]], told: Sequence[ToldView]
) -> None:
    """Prints a table with published rows at the end."""
    texts = {
        name: {column.name: _told(row[column.name], column) for column in columns if column.name in row}
        for name, row in cells.items()
    }
    texts |= {
        f"{model} (published)": {column.name: _printed(row.get(column.name), column) for column in columns}
        for table in told
        for model, row in table.cells.items()
    }
    _say_texts(first, columns, texts)


def _say_texts(first: str, columns: Sequence[ColumnView], texts: Mapping[str, Mapping[str, str]]) -> None:
    """Prints a table, leaving out columns that no row has."""
    shown = [column for column in columns if any(column.name in row for row in texts.values())]
    titles = [first, *(f"{column.name}, %" if column.share else column.name for column in shown)]
    rows = [[name, *(row.get(column.name, "") for column in shown)] for name, row in texts.items()]
    say_table(titles, rows, right=range(1, len(titles)))


def _told(cell: CellView, column: ColumnView) -> str:
    return f"{words(cell, column)}  {bounds(cell, column)}"


def _printed(cell: CellView | None, column: ColumnView) -> str:
    """A published figure, or an em dash if the card has none."""
    return NONE if cell is None else f"{words(cell, column)}  {printed(cell, column)}".strip()


def _notes(found: BenchmarkView) -> list[str]:
    """The dropped rows, what is known of overlap with the models' training data, and the meaning of columns."""
    dropped = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in found.dropped.items())
    leaks = ", ".join(f"{name} {'unknown' if n is None else f'{n:,}'}" for name, n in found.leaks.items())
    told = [f"left out: {dropped}"] if dropped else []
    told += [f"questions that a model was trained on: {leaks}"] if leaks else []
    told += [f"decontaminated against these questions: {name}: {said}" for name, said in found.decontaminated.items()]
    told += [f"{column.name}: {column.note}" for column in found.columns if column.note]
    return [*told, *found.notes, *(f"published: {each.where}" for each in found.published)]


def benchmark_json(found: BenchmarkView) -> dict[str, Any]:
    """A benchmark as JSON: shares in percent, null for undefined numbers."""
    return {
        "benchmark": found.benchmark,
        "rows": found.rows,
        "dropped": dict(found.dropped),
        "models": {name: _model_json(row, found.columns) for name, row in found.cells.items()},
        "baseline": found.baseline,
        "differences": {name: _row_json(row, found.columns) for name, row in found.differences.items()},
        "parts": [
            {"title": part.title, "models": {name: _row_json(row, part.columns) for name, row in part.cells.items()}}
            for part in found.parts
        ],
        "leaks": dict(found.leaks),
        "decontaminated": dict(found.decontaminated),
        "notes": list(found.notes),
        "level": found.level,
        "mark": found.mark,
        "manifest": dict(found.manifest),
        "published": [_told_json(each, found) for each in found.published],
    }


def _told_json(told: ToldView, found: BenchmarkView) -> dict[str, Any]:
    """Published rows in the units of the others; figures that the card does not have are null."""
    columns = next((part.columns for part in found.parts if part.title == told.part), found.columns)
    shares = {column.name: column.share for column in columns}
    return {
        "title": told.title,
        "card": told.card,
        "source": told.source,
        "part": told.part,
        "models": {
            model: {name: cell_json(cell, shares[name]) for name, cell in row.items()}
            for model, row in told.cells.items()
        },
    }


def _model_json(row: Mapping[str, CellView], columns: Sequence[ColumnView]) -> dict[str, Any]:
    """The numbers of a model; `n` is the count of the first."""
    return {"n": row[columns[0].name].n if columns and columns[0].name in row else 0, **_row_json(row, columns)}


def _row_json(row: Mapping[str, CellView], columns: Sequence[ColumnView]) -> dict[str, Any]:
    return {column.name: cell_json(row[column.name], column.share) for column in columns if column.name in row}


def cell_json(cell: CellView, share: bool) -> dict[str, Any]:
    """A number with its bounds; shares are in percent."""
    scale = 100 if share else 1
    value, low, high = (None if each is None else scale * each for each in (cell.value, cell.low, cell.high))
    return {"value": value, "low": low, "high": high, "n": cell.n, **({"note": cell.note} if cell.note else {})}
