"""`togi run --on PLACE`: a run on a Ray cluster. Modules that import Ray are imported only by such a run."""

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
PORT = 10001  # of Ray's client server, if the place names none


@dataclass(frozen=True, slots=True)
class RankNeeds:
    """The ranks of a stage: `size` ranks of `threads` threads each, and the number of `services` that take a device."""

    stage: str
    size: int
    threads: int
    services: int = 0

    @property
    def words(self) -> str:
        return f"{self.size} ranks of {self.threads} processor{'s' * (self.threads != 1)} each"


def checked(place: str) -> str:
    """The place that `--on` names, with Ray's default port if it has none. Raises RecipeError for an invalid one."""
    host, _, port = place.removeprefix(CLIENT).partition(":")
    if place in (LOCAL, AUTO) or (place.startswith(CLIENT) and host and port.isdigit()):
        return place
    if place.startswith(CLIENT) and host and not port:
        return f"{CLIENT}{host}:{PORT}"
    raise RecipeError(
        f"command line: --on {place}: a place is {CLIENT}HOST:PORT (a Ray cluster), {AUTO} (the cluster that this "
        f"machine belongs to, or that $RAY_ADDRESS names) or {LOCAL} (two nodes on this machine, for trials)"
    )


@contextmanager
def opened(
    place: str, folder: Path, store: Path, note: Callable[[str], None], ranks: Sequence[RankNeeds] = ()
) -> Iterator[str]:
    """Yields the address of the cluster at `place`, after checking that each node can use `store` and that the cluster
    has room for each of `ranks`; yields an empty address if `place` is empty. `folder` is the run's.

    Raises ModuleNotFoundError if Ray is not installed, InputError if the cluster cannot do the work.
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
            work.leave()  # users of the cluster connect themselves: Ray's client server fails with several at a time
        yield address


@contextmanager
def _address(place: str, folder: Path) -> Iterator[str]:
    if place != LOCAL:
        yield place
        return
    with LocalCluster(folder / "cluster.log") as cluster:
        yield cluster.address


def cluster_work() -> Any:
    """The module that uses Ray."""
    with own_signals():
        return importlib.import_module("togi.recipe.cluster_work")


def cluster_ranks_work() -> Any:
    """The module that runs ranks on a cluster."""
    with own_signals():
        return importlib.import_module("togi.recipe.cluster_ranks_work")


def cluster_services_work() -> Any:
    """The module that starts services on a cluster."""
    with own_signals():
        return importlib.import_module("togi.recipe.cluster_services_work")


@contextmanager
def own_signals() -> Iterator[None]:
    """Restores this process's handlers of signals and exceptions, which Ray replaces."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    hook = sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
