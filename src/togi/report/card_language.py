"""How a card is written in one of its languages: its texts, togi's own names, and numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from togi.report import card_names
from togi.report.card_words import WORDS
from togi.report.formatting import number, percent, whole
from togi.report.view import IntervalView, RowView

FIGURE = re.compile(r"(?<![\w.,-])\d{1,3}(?:,\d{3})+(?![\w,])|(?<![\w.,-])\d+\.\d+(?![\w.])")
RUSSIAN = str.maketrans({",": "\N{NO-BREAK SPACE}", ".": ","})
RANGES = {"en": "{low} to {high}", "ja": "{low}〜{high}", "ru": "от {low} до {high}"}
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
        level = self._figure(percent(interval.level))
        return self.beside(
            self.bounds(interval), level.replace("\N{NO-BREAK SPACE}", "") if self.code == "ja" else level
        )

    def beside(self, what: str, more: str) -> str:
        """A text with another in brackets."""
        return BESIDE[self.code].format(what=what, more=more) if more else what

    def metric(self, row: RowView) -> str:
        """The name of a row's metric, with its note."""
        return self.beside(card_names.metric(row.metric, self.code), self.figures(card_names.note(row.note, self.code)))

    def label(self, name: str) -> str:
        """The name of a fact about the model or its machine."""
        return card_names.label(name, self.code)

    def curve(self, title: str) -> str:
        """The title of a curve."""
        return card_names.curve(title, self.code)

    def figures(self, text: str) -> str:
        """A text of togi's with its numbers as the language writes them."""
        return FIGURE.sub(lambda found: self._figure(found[0]), text)

    def _figure(self, text: str) -> str:
        return text.translate(RUSSIAN) if self.code == "ru" else text
