"""Gate: the answer does not repeat itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from togi.rewards.base import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionCheck:
    """Passes when at most `max_share` of the n-grams, and of the lines, are repeats of earlier ones.

    Characters (without whitespace) work for every script. Words are the parts between whitespace.
    """

    unit: Literal["chars", "words"] = "chars"
    size: int = 16
    max_share: float = 0.3
    max_line_share: float = 0.3

    def __call__(self, attempt: Attempt) -> str | None:
        words = attempt.answer.split()
        if repeated_share(ngrams("".join(words) if self.unit == "chars" else words, self.size)) > self.max_share:
            return "repeated_ngrams"
        lines = [line.strip() for line in attempt.answer.splitlines() if line.strip()]
        return "repeated_lines" if repeated_share(lines) > self.max_line_share else None


def ngrams(items: Sequence[Any], size: int) -> list[Any]:
    """All runs of `size` adjacent items; none if there are fewer."""
    runs = range(len(items) - size + 1)
    return [items[i : i + size] if isinstance(items, str) else tuple(items[i : i + size]) for i in runs]


def repeated_share(items: Sequence[Any]) -> float:
    """Share of the items that are equal to an earlier one: 0 when all differ or there are none."""
    return 1 - len(set(items)) / len(items) if items else 0.0
