"""How ranks that an external launcher started, on one machine or several, meet and end.

Each first shows that it sees the store and has the same run, code, libraries and threads as rank 0. The other ranks
follow rank 0: it sends them the stages, and the end.
"""

import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from togi.core.errors import InputError, TogiError, WorkerDied
from togi.core.files import write_text
from togi.core.ranks import Ranks
from togi.recipe.cluster_probe import CURE, differences, looker

GREET, FOLLOW, LAST = "greet", "follow", "last"  # orders other than stages
GONE = re.compile(
    r"gloo/|NCCL|connection (?:was )?(?:likely )?(?:closed|reset|refused)|closed by (?:remote )?peer|broken pipe"
    r"|recvValue|sendBytes",
    re.I,
)


def order(kind: str, run: str = "", store: Path | None = None) -> dict[str, Any]:
    """An order for a worker that is not a stage, so it has no settings."""
    return {"order": kind, "name": "the ranks", "settings": {}, "joined": True, "run": run, "store": str(store or "")}


def greet(ranks: Ranks, command: Mapping[str, Any]) -> None:
    """Returns when all ranks have met. Raises InputError on every rank if one does not see the store of rank 0 or has
    another run, code, library or thread count."""
    mark, content = ranks.on_first_rank(lambda: _marked(Path(command["store"])))
    told = ranks.gather(_shown(mark, command))
    ranks.on_first_rank(Path(mark).unlink)
    for rank, shown in enumerate(told):
        who = f"rank {rank} of {ranks.size}, on {shown['host']}"
        if shown["store"] != told[0]["store"] or shown["sees"] != content:
            raise InputError(
                f"{who}, cannot see the store of rank 0, {told[0]['store']}; its own is {shown['store']}: set "
                "TOGI_HOME to a folder on a file system that every machine mounts at the same path"
            )
        if shown["run"] != told[0]["run"]:
            raise InputError(f"{who}, has another recipe than rank 0, or other overrides: start all with the same")
        if other := differences(shown["versions"], told[0]["versions"]):
            raise InputError(f"{who}: {other}, on rank 0; {CURE}")


def _marked(store: Path) -> tuple[str, str]:
    """Yields a file in the store, which exists while the ranks look for it, and its content."""
    store.mkdir(parents=True, exist_ok=True)
    mark, content = store / f".seen-{os.getpid()}", f"{os.getpid()} {time.time_ns()}"
    write_text(mark, content)
    return str(mark), content


def _shown(mark: str, command: Mapping[str, Any]) -> dict[str, Any]:
    """The facts about this rank that must match. The number of threads counts as a version, because bits depend on
    it."""
    found = looker()(mark)
    versions = {**found["versions"], "threads": os.environ.get("OMP_NUM_THREADS", "")}
    return {"sees": found["sees"], "versions": versions, "host": platform.node()} | {
        name: command[name] for name in ("run", "store")
    }


def loss(error: BaseException, command: Mapping[str, Any]) -> TogiError | None:
    """The error for the user if `error` only means that another rank is gone; None for other errors, and if the parent
    sees all ranks and knows more."""
    if not command.get("joined") or not GONE.search(str(error)):
        return None
    return WorkerDied(
        f"{'stage ' * ('order' not in command)}{command['name']}: another rank is gone; the output of its own process "
        "shows why. Everything finished is saved: run the same command again"
    )
