"""A run whose ranks were started by torchrun or by a launcher that sets the same variables.

Each process runs the same command. The process of rank 0 does the run: its worker is rank 0 of the stages that all
ranks do together, and does the other stages alone. The other processes follow (`follow`): each has the worker of one
rank, which gets its stages from rank 0's worker, through torch's rendezvous store.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import ERRORS, Interrupted, RecipeError, TogiError
from togi.core.process import STOPPING
from togi.recipe.graph import Graph
from togi.recipe.greeting import FOLLOW, GREET, LAST, order
from togi.recipe.workers import RankPlace, Worker, Workers

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MEET_AT = "env://"  # tells torch to read the environment variables


@dataclass(frozen=True, slots=True)
class Joined:
    """Rank `rank` of `size`; it is number `local` of the `beside` ranks on its machine."""

    rank: int
    size: int
    local: int
    beside: int


def joined(environment: Mapping[str, str]) -> Joined | None:
    """The rank that this process was started as; None if it is not a rank, or the only one.

    Raises RecipeError for invalid variables.
    """
    if any(name not in environment for name in NAMES):
        return None
    rank, size = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    local = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0
    beside = _number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else 1
    if not rank < size:
        raise RecipeError(f"environment: RANK is {rank} and WORLD_SIZE {size}; ranks count from 0 to WORLD_SIZE - 1")
    return Joined(rank, size, local, beside) if size > 1 else None


def _number(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdigit():
        raise RecipeError(f"environment: {name} must be a count, found {environment[name]!r}; torchrun sets it")
    return int(environment[name])


class JoinedWorkers(Workers):
    """The one worker of this process, which is one of the ranks. `threads` are its own."""

    def __init__(self, log: Path, threads: int, place: Joined) -> None:
        self._place = place
        self._at_work = False
        super().__init__(log, threads, place.size)

    def started(self, log: Path, threads: int) -> list[Worker]:
        place = self._place
        return [Worker(log, threads, RankPlace(place.rank, place.size, MEET_AT, place.local))]

    def do(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._at_work = True
        for event in super().do(command):
            self._at_work = event["event"] not in ("done", "failed")
            yield event

    def close(self) -> None:
        """Ends the worker; rank 0's worker first ends its followers."""
        if self._place.rank == 0 and not self._at_work:
            with suppress(TogiError):
                for _ in self.do(order(LAST)):
                    pass
        super().close()


def lead(workers: Workers, run: str, store: Path) -> None:
    """Returns when all ranks have met. Raises a TogiError if they cannot work together."""
    _obeyed(workers, order(GREET, run, store))


def refuse_other_ranks(graph: Graph, place: Joined) -> None:
    """Raises RecipeError if a stage has several processes but not the number that was started, or if no stage has
    several."""
    wanted = {name: node.settings.ranks for name, node in graph.nodes.items()}
    wrong = {name: count for name, count in wanted.items() if count not in (1, place.size)}
    for name, count in wrong.items():
        raise RecipeError(
            f"stages.{name}.processes is {count}, but {place.size} processes were started (WORLD_SIZE): start {count}, "
            f"or set stages.{name}.processes={place.size}"
        )
    if place.size not in wanted.values():
        raise RecipeError(
            f"{place.size} processes were started (WORLD_SIZE), but no stage has `processes: {place.size}`: set it for "
            "the stages that train, or start togi without a launcher"
        )


def follow(workers: JoinedWorkers, run: str, store: Path) -> None:
    """Follows rank 0 until it ends the run. Raises the error that ended a stage on this rank, and Interrupted."""
    with _heeding(workers) as asked:
        try:
            _obeyed(workers, order(FOLLOW, run, store))
        except TogiError:
            if len(asked) > 1:
                raise Interrupted("stopped at once; everything finished is saved") from None
            raise
        finally:
            workers.close()
    if asked:
        raise Interrupted("stopped; everything finished is saved")


def _obeyed(workers: Workers, command: dict[str, Any]) -> None:
    for event in workers.do(command):
        if event["event"] == "failed":
            raise ERRORS[event["kind"]](event["message"])


@contextmanager
def _heeding(workers: JoinedWorkers) -> Iterator[list[int]]:
    """Yields the list of signals that came: the first lets the current work be saved, the second ends it."""
    asked: list[int] = []

    def heed(number: int, frame: Any) -> None:
        asked.append(number)
        (workers.stop if len(asked) == 1 else workers.kill)()

    before: dict[int, Callable[..., Any] | int | None] = {each: signal.signal(each, heed) for each in STOPPING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_place() -> Joined | None:
    """`joined` for this process's environment."""
    return joined(os.environ)
