"""What the command line of `togi run` says."""

import os
from dataclasses import dataclass

from togi.recipe.joined import Joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line of `run` says; `recipe` is the path as it was typed, and so are `overrides`."""

    recipe: str = ""
    overrides: tuple[str, ...] = ()
    until: str | None = None
    redo: tuple[str, ...] = ()
    accept_numerics: bool = False
    compute: str = "auto"
    limit: int | None = None  # rows of each data set, in a trial
    on: str = ""  # a cluster (recipe/cluster.py); empty: this machine
    joined: Joined | None = None  # which of the ranks that something else has started
    threads: int = 0  # 0: what OMP_NUM_THREADS says, else all that this process may use

    @property
    def worker_threads(self) -> int:
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        own = max(1, len(os.sched_getaffinity(0)) // (self.joined.beside if self.joined else 1))
        return self.threads or (int(asked) if asked.isdigit() else 0) or own

    def rank_threads(self, ranks: int) -> int:
        """Threads of each process of a stage: its share, or all of what a process has that was started as a rank."""
        return self.worker_threads if self.joined else max(1, self.worker_threads // ranks)
