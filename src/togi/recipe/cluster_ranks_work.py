"""The ranks of a training stage on a Ray cluster: actors of one placement group, each with the process of one rank.

A rank is the same process as on one machine (recipe/worker.py), with the same environment and the same threads, so it
computes the same bits. Ranks on one node have consecutive numbers.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from togi.core.errors import WorkerDied
from togi.recipe.cluster import RankNeeds
from togi.recipe.cluster_process_work import CALLS, PYTHON, ProcessActor, RemoteProcess, own_variables, quietly
from togi.recipe.cluster_work import TROUBLE, connect, first_line, leave, nodes, refuse_without_room, sizes
from togi.recipe.workers import ENVIRONMENT, WORKER, RankPlace, Worker, Workers, counts, log_of

PATIENCE = 30.0  # seconds without room until the run reports what it waits for
PAUSE = 1.0  # seconds between two checks for a request to stop


class ClusterWorker(Worker):
    """The process of one rank, on the node of its actor."""

    def __init__(self, actor: Any, node: str, log: Path, rank: int) -> None:
        self.rank, self.where = rank, f", on {node}"
        self.log = log_of(log, rank)
        self.process: Any = RemoteProcess(actor)

    def end(self) -> str:
        self.process.wait()
        if self.process.lost:
            return f"is gone: its node died, or Ray ended it there ({self.process.lost}); see `ray status`"
        return super().end()


class ClusterWorkers(Workers):
    """All ranks of a stage, on the cluster at `address`. `threads` is the total of all ranks. `note` reports what the
    run waits for, and `heed` raises if someone asked to stop.

    Raises InputError if the cluster has no room for them at all, WorkerDied if they cannot be started.
    """

    def __init__(
        self, address: str, log: Path, needs: RankNeeds, note: Callable[[str], None], heed: Callable[[], None]
    ) -> None:
        self._needs, self._note, self._heed = needs, note, heed
        with ExitStack() as stack:
            connect(address)
            stack.callback(leave)
            self._stack = stack
            try:
                super().__init__(log, needs.threads * needs.size, needs.size)
            except TROUBLE as error:
                raise WorkerDied(
                    f"stage {needs.stage}: its ranks could not be started on the cluster: {first_line(error)}. "
                    "Everything finished is saved: run the same command again"
                ) from None
            self._stack = stack.pop_all()

    def started(self, log: Path, threads: int) -> list[Worker]:
        found = nodes()
        bundle = refuse_without_room(found, self._needs)
        group = placement_group([bundle] * self.size, strategy="PACK")
        self._stack.callback(quietly, remove_placement_group, group)
        self._await_room(group)
        actors = [_actor(group, number, bundle) for number in range(self.size)]
        for actor in actors:
            self._stack.callback(quietly, ray.kill, actor)
        places = ray.get([actor.place.remote() for actor in actors])
        where = {node.id: node for node in (*found, *nodes())}
        order = sorted(range(self.size), key=lambda number: (where[places[number][0]].name, places[number][0], number))
        first, port = places[order[0]]
        workers: list[Worker] = []
        for rank, number in enumerate(order):
            self._start(actors[number], RankPlace(rank, self.size, f"tcp://{where[first].address}:{port}", 0), log)
            workers.append(ClusterWorker(actors[number], where[places[number][0]].name, log, rank))
        told = Counter(where[places[number][0]].name for number in order)
        self._note("ranks by node: " + ", ".join(f"{name} {count}" for name, count in told.items()))
        return workers

    def close(self) -> None:
        super().close()
        self._stack.close()

    def _start(self, actor: Any, place: RankPlace, log: Path) -> None:
        """Starts a rank. Ray shows each actor only its own device, so the device number is 0 on each rank."""
        environment = {**own_variables(), **counts(self._needs.threads)}
        command = [PYTHON, *WORKER, *place.arguments]
        ray.get(actor.start.remote(command, environment, ENVIRONMENT, str(log_of(log, place.rank))))

    def _await_room(self, group: Any) -> None:
        """Returns when all ranks are placed on nodes."""
        waited = 0.0
        while not group.wait(timeout_seconds=PAUSE):
            self._heed()
            waited += PAUSE
            if waited % PATIENCE == 0:
                free = ray.available_resources()
                self._note(
                    f"stage {self._needs.stage} waits for room for {self._needs.words}: the cluster has "
                    f"{sizes(int(free.get('CPU', 0)), int(free.get('GPU', 0)))} free"
                )


def _actor(group: Any, number: int, bundle: dict[str, float]) -> Any:
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
    options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "max_concurrency": CALLS}
    return ray.remote(ProcessActor).options(**options, scheduling_strategy=where).remote()
