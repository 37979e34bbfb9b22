"""Ranks: the processes that work on one stage together, and how they agree.

All ranks run the same program. Every rank calls each method that agrees on something, at the same place and in the same
order. With one process these calls cost nothing. Only rank 0 writes files and logs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")


class Ranks:
    """A single process; `togi.train.ranks` has the class for several. `rank` counts from 0 to `size` - 1."""

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
        """The values of all ranks, in rank order."""
        return [value]

    def on_first_rank(self, make: Callable[[], Value]) -> Value:
        """The value of `make`, which only rank 0 calls, sent to all ranks. An exception there must end the stage,
        because the other ranks wait for the value."""
        return make()

    def barrier(self) -> None:
        """Returns once all ranks have called it."""

    def sum_gradients(self, params: Iterable[Any]) -> None:
        """Sums the gradients of unsharded parameters. The backward pass has already summed those of sharded ones."""

    def tell(self, order: Any) -> None:
        """On rank 0: sends the next order to the ranks that follow it; None ends them. Does nothing if none follow."""

    def hear(self, stopped: Callable[[], bool]) -> Any:
        """On a rank that follows rank 0: returns the next order; None at the end, or when `stopped` returns true."""
        return None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather(flag))

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """The value of `make` on each rank. Rank 0 goes first, so that the others find the files that it leaves on
        disk. A `make` that may take hours calls `still_here`."""
        if not self.first:
            while not self.any(False):
                pass  # rank 0 is still working
            return make()
        self._awaited = True
        try:
            return make()
        finally:  # the other ranks raise the same error themselves
            self._awaited = False
            self.any(True)

    def still_here(self) -> None:
        """Rank 0 calls this from time to time during its turn, because the others stop waiting for a rank that is
        silent too long. Outside that turn it does nothing."""
        if self._awaited:
            self.any(False)

    def share(self, parts: Sequence[Value]) -> list[tuple[Value, bool]]:
        """This rank's parts of a step (indices rank, rank + size, ...), and whether each is idle.

        All ranks get the same number. If the parts do not divide evenly, the remaining ranks also get the last part, as
        an idle one. They compute it at the same time as its owner, so that all stay in step, but there it has no
        weight.
        """
        mine = [(part, False) for part in parts[self.rank :: self.size]]
        return [*mine, (parts[-1], True)] if 0 < len(parts) % self.size <= self.rank else mine


ALONE = Ranks()
