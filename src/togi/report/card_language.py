"""Writes the parts of a card that depend on its language: texts, togi's own names, and numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from togi.report import card_names
from togi.report.card_words import WORDS
from togi.report.cells import words as value_of
from togi.report.formatting import number, percent, whole
from togi.report.view import CellView, ColumnView, IntervalView, RowView

FIGURE = re.compile(r"(?<![\w.,-])\d{1,3}(?:,\d{3})+(?![\w,])|(?<![\w.,-])\d+\.\d+(?![\w.])")
RUSSIAN = str.maketrans({",": "\N{NO-BREAK SPACE}", ".": ","})
RANGES = {"en": "{low} to {high}", "ja": "{low}〜{high}", "ru": "от {low} до {high}"}
SEPARATORS = {"en": "; ", "ja": "；", "ru": "; "}
UNIT = ", %"
RANGE = re.compile(r"(\d+\.\d+) to (\d+\.\d+)")
BESIDE = {"en": "{what} ({more})", "ja": "{what}（{more}）", "ru": "{what} ({more})"}


@dataclass(frozen=True, slots=True)
class Language:
    """One of `card_words.LANGUAGES`."""

    code: str

    @property
    def words(self) -> Mapping[str, str]:
        """The texts of the card."""
        return WORDS[self.code]

    def number(self, value: float, *, signed: bool = False) -> str:
        """A number as `formatting.number` rounds it: in Russian with a decimal comma."""
        return self._figure(number(value, signed=signed))

    def count(self, value: int) -> str:
        """A count with separators between thousands."""
        return self._figure(whole(value))

    def bounds(self, interval: IntervalView, *, signed: bool = False) -> str:
        """An interval: "0.82 to 0.91"."""
        low, high = (self.number(end, signed=signed) for end in (interval.low, interval.high))
        return RANGES[self.code].format(low=low, high=high)

    def interval(self, interval: IntervalView) -> str:
        """An interval with its level: "0.82 to 0.91 (95 %)"."""
        return self.beside(self.bounds(interval), self.level(interval.level))

    def level(self, level: float) -> str:
        """A confidence level: "95 %"."""
        text = self._figure(percent(level))
        return text.replace("\N{NO-BREAK SPACE}", "") if self.code == "ja" else text

    def cell(self, cell: CellView, column: ColumnView, *, signed: bool = False) -> str:
        """A figure of a benchmark with its interval, its count and its note: "70.3 (66.0 to 75.0; 283)"."""
        low, high = self._cell(cell.low, column), self._cell(cell.high, column)
        bounds = "" if None in (cell.value, cell.low, cell.high) else RANGES[self.code].format(low=low, high=high)
        sign = "+" if signed and (cell.value or 0) > 0 else ""
        more = filter(None, (bounds, self.count(cell.n), self.note(cell.note)))
        return self.beside(sign + self._cell(cell.value, column), SEPARATORS[self.code].join(more))

    def column(self, column: ColumnView) -> str:
        """The name of a benchmark's column, with the unit of shares."""
        return f"{self.named(column.name)}{UNIT if column.share else ''}"

    def named(self, name: str) -> str:
        """The name of a benchmark's column, which may be a range of numbers."""
        if found := RANGE.fullmatch(name):
            return RANGES[self.code].format(low=self._figure(found[1]), high=self._figure(found[2]))
        return card_names.metric(name, self.code)

    def title(self, title: str) -> str:
        """The name of a part of a benchmark's table."""
        return card_names.part(title, self.code)

    def note(self, text: str) -> str:
        """A remark of togi's, with its numbers as the language writes them."""
        return self.figures(card_names.note(text, self.code))

    def beside(self, what: str, more: str) -> str:
        """A text with another in brackets."""
        return BESIDE[self.code].format(what=what, more=more) if more else what

    def metric(self, row: RowView) -> str:
        """The name of a row's metric, with its note."""
        return self.beside(card_names.metric(row.metric, self.code), self.note(row.note))

    def label(self, name: str) -> str:
        """The name of a fact about the model or its machine."""
        return card_names.label(name, self.code)

    def curve(self, title: str) -> str:
        """The title of a curve."""
        return card_names.curve(title, self.code)

    def figures(self, text: str) -> str:
        """A text of togi's with its numbers as the language writes them."""
        return FIGURE.sub(lambda found: self._figure(found[0]), text)

    def _cell(self, value: float | None, column: ColumnView) -> str:
        return self._figure(value_of(CellView(value=value), column))

    def _figure(self, text: str) -> str:
        return text.translate(RUSSIAN) if self.code == "ru" else text
