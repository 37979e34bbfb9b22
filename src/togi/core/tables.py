"""Tables for people: aligned, wrapped to the terminal, coloured only there. Cells are plain text, never markup."""

import io
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from togi.core.terminal import printable, say

UNLIMITED = 100_000  # columns if the output is not a terminal: nothing is wrapped, so that lines can be searched
GAP = 2  # columns between two cells
LINE = 24  # columns of the longest cell that is never wrapped; longer text is prose
LONGEST = 32  # columns of a word that prose keeps whole; longer words (paths, Japanese) may be split
USUAL = 40
"""Without a terminal, a column is as wide as its longest cell of at most this many characters; a longer cell makes only
its own line longer."""
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


class Rows:
    """A table of texts for rich, as wide as the place that it is shown in.

    Only words move to the next line: in titles, and in cells of prose. If the columns do not fit even so, each row is a
    block of `title: value` lines, so that no number, date or id is broken and no column is hidden. Without a terminal,
    each row is one line.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
        self.titles = [printable(title) for title in columns]
        self.rows = [[printable(cell) for cell in row] for row in rows]
        self.right = right

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = self.widths(options.max_width)
        width = options.max_width if widths is None else sum(widths) + GAP * (len(widths) - 1)
        return Measurement(width, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self.widths(options.max_width)
        if options.max_width >= UNLIMITED:
            yield Text("\n".join(self._lines()), no_wrap=True, overflow="ignore")
        elif widths is None:
            yield from self._blocks()
        else:
            yield self._table(widths)

    def widths(self, most: int) -> list[int] | None:
        """The width of each column, together at most `most` with their gaps; None if they do not fit."""
        places = range(len(self.titles))
        least = [self._least(place) for place in places]
        longest = [max(map(cell_len, self._column(place))) for place in places]
        widths = [max(low, min(most, high)) for low, high in zip(least, longest, strict=True)]
        excess = sum(widths) + GAP * (len(widths) - 1) - most
        while excess > 0:
            wide = [place for place in places if widths[place] > least[place]]
            if not wide:
                return None
            widths[max(wide, key=widths.__getitem__)] -= 1
            excess -= 1
        return widths

    def _column(self, place: int) -> list[str]:
        return [self.titles[place], *(row[place] for row in self.rows)]

    def _least(self, place: int) -> int:
        """The least width of a column: its longest word, or its longest cell if that is no prose."""
        title, *cells = self._column(place)
        units = [cell if place in self.right or cell_len(cell) <= LINE else _longest_word(cell) for cell in cells]
        return max(map(cell_len, [_longest_word(title), *units]))

    def _table(self, widths: Sequence[int]) -> Table:
        titled = any(self.titles)
        shown = Table(box=box.SIMPLE_HEAD if titled else None, pad_edge=False, show_header=titled, show_edge=False)
        shown.padding = (0, 1 if titled else GAP, 0, 0)
        for place, title in enumerate(self.titles):
            side = "right" if place in self.right else "left"
            shown.add_column(title, justify=side, overflow="fold", width=widths[place])
        for row in self.rows:
            shown.add_row(*map(_styled, row))
        return shown

    def _lines(self) -> Iterator[str]:
        """The titles, a rule, and the rows, each on one line."""
        widths = [self._usual(place) for place in range(len(self.titles))]
        if any(self.titles):
            yield self._line(self.titles, widths)
            yield "─" * (sum(widths) + GAP * (len(widths) - 1))
        for row in self.rows:
            yield self._line(row, widths)

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            text = " ".join(cell.splitlines())
            space = " " * (width - cell_len(text))
            cells.append(space + text if place in self.right else text + space)
        return (" " * GAP).join(cells).rstrip()

    def _usual(self, place: int) -> int:
        """The width of a column without a terminal."""
        title, *cells = self._column(place)
        lengths = [length for cell in cells if (length := cell_len(cell)) <= USUAL or place in self.right]
        return max([cell_len(title), *lengths])

    def _blocks(self) -> Iterator[Padding]:
        """The rows as blocks: the first value is on a line of its own, the others are indented. Empty cells are left
        out."""
        for row in self.rows:
            for place, (title, cell) in enumerate(zip(self.titles, row, strict=True)):
                if cell:
                    line = Text.assemble(f"{title}: " if title else "", _styled(cell), overflow="fold")
                    yield Padding(line, (0, 0, 0, 2 if place else 0))


def _longest_word(text: str) -> str:
    """The longest word, or as much of it as stays on a line."""
    longest = max(text.split(), key=cell_len, default="")
    return set_cell_size(longest, min(cell_len(longest), LONGEST))


def _styled(cell: str) -> Text:
    return Text(cell, style=STYLES.get(cell, ""))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Rows:
    """A table of `columns` and `rows` for rich. Columns whose indices are in `right` are right-aligned numbers; a table
    without titles has empty `columns`."""
    return Rows(columns, rows, right)


def fits(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> bool:
    """Whether `say_table` shows these as a table; if not, it shows a block for each row."""
    return table(columns, rows, right=right).widths(_width(sys.stdout.isatty())) is not None


def say_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Prints a table on standard output, as wide as the terminal, or as its content if there is none. Where it does not
    fit, each row is a block of `title: value` lines. Raises OutputClosed and StageError, as `say` does."""
    if rows:
        say(rendered(table(columns, rows, right=right), colour=sys.stdout.isatty()), escaped=True)


def rendered(value: Any, colour: bool) -> str:
    """`value` rendered by rich, without trailing spaces."""
    written = io.StringIO()
    console = Console(file=written, width=_width(colour), force_terminal=colour, highlight=False, emoji=False)
    console.print(value)
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)


def _width(terminal: bool) -> int:
    return shutil.get_terminal_size().columns if terminal else UNLIMITED


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
