"""Reads files of verdicts and grades: rows with the columns that a benchmark needs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import InputError
from togi.data.rows import read_rows
from togi.data.values import BadRow

LARGEST = 1e60
"""Larger numbers are mistakes; sums of their fourth powers, which intervals need, would overflow a float."""


@dataclass(frozen=True, slots=True)
class Read:
    """A row of a file and its location, such as battles.jsonl:12."""

    where: str
    values: dict[str, Any]

    def text(self, column: str) -> str:
        """A column that holds text or a whole number, as ids do (some tools write the id 81 as 81.0). InputError for
        anything else or an empty value."""
        value = self.values[column]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise InputError(f"{self.where}: {column}: found {shown(value)}; expected text that is not empty")
        return str(value)

    def number(self, column: str, low: float = -LARGEST, high: float = LARGEST) -> float | None:
        """A column that holds a number, null or an empty cell; InputError for anything else."""
        value = self.values[column]
        return None if value is None or value == "" else self.checked(column, value, low, high, ", or null")

    def checked(
        self, name: str, value: Any, low: float = -LARGEST, high: float = LARGEST, otherwise: str = ""
    ) -> float:
        """A value of this row, inside a column perhaps, as a number; InputError for anything else. `otherwise` says
        what else is allowed."""
        found = _number(value)
        if found is None or not low <= found <= high:
            span = "" if found is None and low == -LARGEST else f" from {low:g} to {high:g}"
            raise InputError(f"{self.where}: {name}: found {shown(value)}; expected a number{span}{otherwise}")
        return found


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[Read]:
    """The rows of a file (JSON Lines, JSON, CSV, TSV or Parquet, also gzipped), each with at least `columns`.

    InputError, with file and line, for a row that cannot be read or lacks a column; also for a file without rows.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {found}; expected a file of rows with {', '.join(columns)}")
    count = 0
    for row in read_rows(path):
        count += 1
        if isinstance(row.values, BadRow):
            raise InputError(f"{row.where}: {row.values}")
        missing = [name for name in columns if name not in row.values]
        if missing:
            found = ", ".join(row.values) or "no columns"
            raise InputError(
                f"{row.where}: no column {', '.join(map(repr, missing))}; found {found}; "
                f"a row needs {', '.join(columns)}"
            )
        yield Read(row.where, row.values)
    if not count:
        raise InputError(f"{path}: the file has no rows; a row needs {', '.join(columns)}")


def shown(value: Any) -> str:
    """A value as an error message shows it."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _number(value: Any) -> float | None:
    """A finite number, also if written as text, as CSV cells are; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
