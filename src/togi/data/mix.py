"""Mixing sources by their share of tokens.

The next item always comes from the source that is furthest behind its share, so that with K sources the tokens of each
stay within (K - 1) times the longest item of share x total, at every moment, however long the items of each source are.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.core.errors import InputError
from togi.core.seeds import derive


def furthest_behind(shares: Sequence[float], tokens: Sequence[int]) -> int:
    """The source that lacks most tokens of its share of what was drawn so far; the first of equals, at the very start
    the one with the largest share."""
    total = sum(tokens)
    if not total:
        return max(range(len(shares)), key=lambda i: shares[i])
    return max(range(len(shares)), key=lambda i: shares[i] * total - tokens[i])


def normalised(shares: Sequence[float]) -> list[float]:
    """Shares that add up to 1. Raises InputError for a share that is not above 0."""
    if not shares or min(shares) <= 0:
        raise InputError(f"shares of a mixture are above 0, found {list(shares)}")
    return [share / sum(shares) for share in shares]


@dataclass(slots=True)
class Cursor:
    """A place in the shuffled epochs of `size` items. When they run out, the next epoch begins in another order."""

    size: int
    seed: int
    epoch: int = 0
    place: int = 0
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def item(self) -> int:
        """The item at this place."""
        if self._order[0] != self.epoch:
            order = list(range(self.size))
            random.Random(derive(self.seed, "epoch", self.epoch)).shuffle(order)
            self._order = (self.epoch, order)
        return self._order[1][self.place]

    def advance(self) -> None:
        """To the next item."""
        self.place += 1
        if self.place == self.size:
            self.epoch, self.place = self.epoch + 1, 0

    @property
    def epochs(self) -> float:
        """Passes over the items, finished ones and the part of the present one."""
        return self.epoch + self.place / self.size


@dataclass(slots=True)
class Stream:
    """One source of a mixture: what was drawn of it. `part` is the next piece of the present item, where an item is cut
    into several; `tokens` and `pieces` were drawn in all."""

    name: str
    share: float
    cursor: Cursor
    part: int = 0
    tokens: int = 0
    pieces: int = 0

    def drew(self, tokens: int, last: bool) -> None:
        """Counts a piece of `tokens`; after the `last` piece of an item the next item's turn has come."""
        self.tokens += tokens
        self.pieces += 1
        self.part = 0 if last else self.part + 1
        if last:
            self.cursor.advance()

    def state(self) -> dict[str, Any]:
        """What must survive a kill."""
        place = {"epoch": self.cursor.epoch, "place": self.cursor.place, "part": self.part}
        return {**place, "tokens": self.tokens, "pieces": self.pieces}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.cursor.epoch, self.cursor.place = state["epoch"], state["place"]
        self.part, self.tokens, self.pieces = state["part"], state["tokens"], state["pieces"]


def next_stream(streams: Sequence[Stream]) -> Stream:
    """The source that the next piece comes from."""
    return streams[furthest_behind([s.share for s in streams], [s.tokens for s in streams])]


def ledger(streams: Sequence[Stream]) -> dict[str, dict[str, float]]:
    """What was drawn of each source: tokens, their share of all, the share asked for, pieces, and epochs."""
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
