"""`togi run --on PLACE`: a run on a Ray cluster. What imports Ray is imported late, by a run that asks for it."""

import importlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import RecipeError
from togi.core.process import STOPPING
from togi.recipe.local_cluster import NODES, LocalCluster

LOCAL, AUTO, CLIENT = "local-cluster", "auto", "ray://"
PORT = 10001  # of Ray's server for clients, where the place names none


@dataclass(frozen=True, slots=True)
class RankNeeds:
    """The ranks of a stage: `size` of them, of `threads` threads each, and `services` that take a device."""

    stage: str
    size: int
    threads: int
    services: int = 0

    @property
    def words(self) -> str:
        return f"{self.size} ranks of {self.threads} processor{'s' * (self.threads != 1)} each"


def checked(place: str) -> str:
    """The place that `--on` names, whole. Raises RecipeError for what is none."""
    host, _, port = place.removeprefix(CLIENT).partition(":")
    if place in (LOCAL, AUTO) or (place.startswith(CLIENT) and host and port.isdigit()):
        return place
    if place.startswith(CLIENT) and host and not port:
        return f"{CLIENT}{host}:{PORT}"
    raise RecipeError(
        f"command line: --on {place}: a place is {CLIENT}HOST:PORT (a Ray cluster), {AUTO} (the cluster that this "
        f"machine belongs to, or that $RAY_ADDRESS names) or {LOCAL} (two nodes on this machine, for a try)"
    )


@contextmanager
def opened(
    place: str, folder: Path, store: Path, note: Callable[[str], None], ranks: Sequence[RankNeeds] = ()
) -> Iterator[str]:
    """The address of the cluster at `place`, once each of its nodes has shown that it can work on `store`, and all that
    there is room for each of `ranks`; empty where there is no place. `folder` is the run's.

    Raises ModuleNotFoundError where Ray is not installed, InputError where the cluster cannot do the work.
    """
    if not place:
        yield ""
        return
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError("Ray is not installed", name="ray")
    with _address(place, folder) as address:
        work = cluster_work()
        work.connect(address)
        try:
            note(work.examine(store, NODES if place == LOCAL else 1, ranks))
        finally:
            work.leave()  # who works with the cluster connects: Ray's server for clients fails under several at a time
        yield address


@contextmanager
def _address(place: str, folder: Path) -> Iterator[str]:
    if place != LOCAL:
        yield place
        return
    with LocalCluster(folder / "cluster.log") as cluster:
        yield cluster.address


def cluster_work() -> Any:
    """The module that speaks to Ray."""
    with own_signals():
        return importlib.import_module("togi.recipe.cluster_work")


def cluster_ranks_work() -> Any:
    """The module that lets ranks work on a cluster."""
    with own_signals():
        return importlib.import_module("togi.recipe.cluster_ranks_work")


def cluster_services_work() -> Any:
    """The module that starts services on a cluster."""
    with own_signals():
        return importlib.import_module("togi.recipe.cluster_services_work")


@contextmanager
def own_signals() -> Iterator[None]:
    """Keeps what this process does on a signal, and on an exception: Ray puts its own there."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    hook = sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
