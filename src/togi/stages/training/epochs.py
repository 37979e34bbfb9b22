"""Items in shuffled epochs, as one endless sequence."""

import random
from array import array
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from togi.core.seeds import derive

Item = TypeVar("Item")


class Epochs(Generic[Item]):
    """An endless sequence of shuffled epochs over `items`. The order depends only on `seed` and the number of items."""

    def __init__(self, items: Sequence[Item], seed: int) -> None:
        self.items = items
        self.seed = seed
        self._orders: dict[int, array[int]] = {}

    def take(self, places: Iterable[int]) -> list[Item]:
        """The items at these positions of the sequence."""
        chosen = []
        for at in places:
            epoch, place = divmod(at, len(self.items))
            chosen.append(self.items[self._order(epoch)[place]])
        return chosen

    def used(self, count: int) -> "array[int]":
        """The places in `items` of what the first `count` positions take."""
        return self._order(0)[: min(count, len(self.items))]

    def _order(self, epoch: int) -> "array[int]":
        """The order of an epoch. Only the most recent order is kept."""
        if epoch not in self._orders:
            order = array("q", range(len(self.items)))
            random.Random(derive(self.seed, "epoch", epoch)).shuffle(order)
            self._orders = {epoch: order}
        return self._orders[epoch]
