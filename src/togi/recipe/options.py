"""The options of `togi run`."""

import os
from dataclasses import dataclass

from togi.recipe.joined import Joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options on the command line of `run`; `recipe`, a path, and `overrides` are as the user typed them."""

    recipe: str = ""
    overrides: tuple[str, ...] = ()
    until: str | None = None
    redo: tuple[str, ...] = ()
    accept_numerics: bool = False
    compute: str = "auto"
    limit: int | None = None  # rows of each data set, in a trial
    on: str = ""  # a cluster (recipe/cluster.py); empty: this machine
    joined: Joined | None = None  # this process's rank, if a launcher such as torchrun started it
    threads: int = 0  # 0: the value of OMP_NUM_THREADS, else all that this process may use

    @property
    def worker_threads(self) -> int:
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        own = max(1, len(os.sched_getaffinity(0)) // (self.joined.beside if self.joined else 1))
        return self.threads or (int(asked) if asked.isdigit() else 0) or own

    def rank_threads(self, ranks: int) -> int:
        """Threads of each process of a stage: its share, or all threads of a process that was started as a rank."""
        return self.worker_threads if self.joined else max(1, self.worker_threads // ranks)
