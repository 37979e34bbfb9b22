"""Ranks: the processes that do one stage together, and how they agree.

All ranks run the same program. Every method that agrees on something is called by all of them, at the same place and in
the same order; with one process it costs nothing. Only rank 0 writes files and speaks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")


class Ranks:
    """One process alone; `togi.train.ranks` has the several. `rank` counts from 0 to `size` - 1."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other processes to agree with."""
        return self.size > 1

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        return [value]

    def on_first_rank(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on rank 0, told to all; nobody else calls it. What it raises must end the stage, since the
        others wait for the value."""
        return make()

    def barrier(self) -> None:
        """Returns when all ranks are here."""

    def sum_gradients(self, params: Iterable[Any]) -> None:
        """Sums the gradients of parameters that every rank holds whole; sharded ones were summed in the backward."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return any(self.gather(flag))

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on each rank; rank 0 goes first, so that the others find what it leaves on the disk."""
        if not self.first:
            self.barrier()
            return make()
        try:
            return make()
        finally:  # what it raises is raised on each rank
            self.barrier()

    def share(self, parts: Sequence[Value]) -> list[tuple[Value, bool]]:
        """This rank's parts of a step, rank, rank + size, ..., and whether each is idle.

        All ranks get as many. Where there are too few to go round, the last part is given to the rest too, idle: it is
        computed, at the same time as by the rank that it belongs to, so that all stay in step, and carries no weight.
        """
        mine = [(part, False) for part in parts[self.rank :: self.size]]
        return [*mine, (parts[-1], True)] if 0 < len(parts) % self.size <= self.rank else mine


ALONE = Ranks()
