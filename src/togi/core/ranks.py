"""Ranks: the processes that work on one stage together, and how they agree.

All ranks run the same program. Every rank calls each method that agrees on something, at the same place and in the same
order. With one process these calls cost nothing. Only rank 0 writes files and logs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")


class Ranks:
    """One process alone; `togi.train.ranks` has the class for several. `rank` counts from 0 to `size` - 1."""

    rank: int = 0
    size: int = 1
    _awaited: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other processes to agree with."""
        return self.size > 1

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        return [value]

    def on_first_rank(self, make: Callable[[], Value]) -> Value:
        """The value of `make` on rank 0, sent to all ranks; only rank 0 calls it. An exception there must end the
        stage, because the other ranks wait for the value."""
        return make()

    def barrier(self) -> None:
        """Returns once all ranks have called it."""

    def sum_gradients(self, params: Iterable[Any]) -> None:
        """Sums the gradients of parameters that every rank holds whole. The backward pass has summed sharded ones."""

    def tell(self, order: Any) -> None:
        """On rank 0: what the ranks that follow it hear next; None lets them go. Nothing where none follow."""

    def hear(self, stopped: Callable[[], bool]) -> Any:
        """On a rank that follows rank 0: what it was told next; None at the end, and once `stopped` says so."""
        return None

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return any(self.gather(flag))

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """The value of `make` on each rank. Rank 0 goes first, so that the others find what it leaves on the disk. A
        `make` that may take hours calls `still_here`."""
        if not self.first:
            while not self.any(False):
                pass  # rank 0 is still at it
            return make()
        self._awaited = True
        try:
            return make()
        finally:  # the other ranks raise the same error themselves
            self._awaited = False
            self.any(True)

    def still_here(self) -> None:
        """Called now and then in the turn of rank 0: the others wait a bounded time only for a rank that says nothing.
        Anywhere else it does nothing."""
        if self._awaited:
            self.any(False)

    def share(self, parts: Sequence[Value]) -> list[tuple[Value, bool]]:
        """This rank's parts of a step (numbers rank, rank + size, ...), and whether each is idle.

        All ranks get equally many. If the parts do not divide evenly, the remaining ranks get the last part too, as an
        idle one: they compute it at the same time as its owner, so that all stay in step, and it carries no weight.
        """
        mine = [(part, False) for part in parts[self.rank :: self.size]]
        return [*mine, (parts[-1], True)] if 0 < len(parts) % self.size <= self.rank else mine


ALONE = Ranks()
