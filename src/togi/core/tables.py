"""Tables for people: aligned, wrapped to the terminal, coloured only there. Cells are plain text, never markup."""

import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from togi.core.terminal import printable, say

UNLIMITED = 100_000  # columns if the output is not a terminal: nothing is wrapped, so that lines can be searched
STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "interrupted": "yellow",
    "begun": "yellow",
    "better": "green",
    "worse": "red",
}
"""Styles of cells with one of these words."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Table:
    """A table of `columns` and `rows` for rich. Columns whose indices are in `right` are right-aligned; a table without
    titles has empty `columns`."""
    shown = Table(box=box.SIMPLE_HEAD if any(columns) else None, pad_edge=False, show_header=any(columns))
    for number, title in enumerate(columns):
        side = "right" if number in right else "left"
        shown.add_column(printable(title), justify=side, overflow="fold", no_wrap=number == 0)
    for row in rows:
        shown.add_row(*(Text(printable(cell), style=STYLES.get(cell, "")) for cell in row))
    return shown


def say_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Prints a table on standard output, as wide as the terminal, or as its content if there is none. Raises
    OutputClosed and StageError, as `say` does."""
    if rows:
        say(rendered(table(columns, rows, right=right), colour=sys.stdout.isatty()), escaped=True)


def rendered(value: Any, colour: bool) -> str:
    """`value` rendered by rich, without trailing spaces."""
    width = shutil.get_terminal_size().columns if colour else UNLIMITED
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=colour, highlight=False, emoji=False)
    console.print(value)
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)


def plain(value: Any) -> str:
    """A JSON-like value in words: no Python brackets, no quotes around text; "none" for an empty value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence):
        return ", ".join(map(plain, value)) or "none"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else json.dumps(value)
