"""Mixes sources by their share of tokens.

The next item always comes from the source that is furthest behind its share. With K sources, the tokens of each
therefore stay within (K - 1) times the longest item of share x total at every moment, whatever the item lengths.
"""

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.core.errors import InputError
from togi.core.seeds import derive


def furthest_behind(shares: Sequence[float], tokens: Sequence[int]) -> int:
    """The source that is furthest behind its share of the tokens drawn so far. Ties go to the first; at the start, the
    source with the largest share wins."""
    total = sum(tokens)
    if not total:
        return max(range(len(shares)), key=lambda i: shares[i])
    return max(range(len(shares)), key=lambda i: shares[i] * total - tokens[i])


def normalised(shares: Sequence[float]) -> list[float]:
    """Shares that add up to 1. Raises InputError for a share that is not above 0."""
    if not shares or min(shares) <= 0:
        raise InputError(f"shares of a mixture must be above 0, found {list(shares)}")
    return [share / sum(shares) for share in shares]


def whole_parts(shares: Sequence[float], amount: int) -> list[int]:
    """The whole number of rows of each share (they add up to 1), `amount` in total, by the largest remainder method;
    ties go to the first."""
    sizes = [int(share * amount + 1e-9) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: round(sizes[i] - shares[i] * amount, 9))
    for place in by_remainder[: amount - sum(sizes)]:
        sizes[place] += 1
    return sizes


@dataclass(slots=True)
class Cursor:
    """A position in the shuffled epochs of `size` items. Each epoch has another order."""

    size: int
    seed: int
    epoch: int = 0
    place: int = 0
    _order: tuple[int, "array[int]"] = field(default=(-1, array("q")), repr=False)

    def item(self) -> int:
        """The item at this position."""
        if self._order[0] != self.epoch:
            order = array("q", range(self.size))
            random.Random(derive(self.seed, "epoch", self.epoch)).shuffle(order)
            self._order = (self.epoch, order)
        return self._order[1][self.place]

    def advance(self) -> None:
        """Moves to the next item."""
        self.place += 1
        if self.place == self.size:
            self.epoch, self.place = self.epoch + 1, 0

    @property
    def epochs(self) -> float:
        """Epochs so far, with the fraction of the current one."""
        return self.epoch + self.place / self.size


@dataclass(slots=True)
class Stream:
    """One source of a mixture and the amounts drawn from it: `tokens` and `pieces` in total. `part` is the next piece
    of the current item, if items are cut into several pieces."""

    name: str
    share: float
    cursor: Cursor
    part: int = 0
    tokens: int = 0
    pieces: int = 0

    def drew(self, tokens: int, last: bool) -> None:
        """Counts a piece of `tokens`; after the `last` piece, moves to the next item."""
        self.tokens += tokens
        self.pieces += 1
        self.part = 0 if last else self.part + 1
        if last:
            self.cursor.advance()

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        place = {"epoch": self.cursor.epoch, "place": self.cursor.place, "part": self.part}
        return {**place, "tokens": self.tokens, "pieces": self.pieces}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the result of `state`."""
        self.cursor.epoch, self.cursor.place = state["epoch"], state["place"]
        self.part, self.tokens, self.pieces = state["part"], state["tokens"], state["pieces"]


def next_stream(streams: Sequence[Stream]) -> Stream:
    """The source that the next piece comes from."""
    return streams[furthest_behind([s.share for s in streams], [s.tokens for s in streams])]


def ledger(streams: Sequence[Stream]) -> dict[str, dict[str, float]]:
    """The amounts drawn from each source: tokens, their share, the requested share, pieces, and epochs."""
    total = sum(stream.tokens for stream in streams) or 1
    return {
        stream.name: {
            "tokens": stream.tokens,
            "share": stream.tokens / total,
            "asked": stream.share,
            "pieces": stream.pieces,
            "epochs": stream.cursor.epochs,
        }
        for stream in streams
    }
