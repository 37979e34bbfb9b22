"""Shards as tasks of a Ray cluster.

The driver chooses the node with the fewest waiting shards per processor, because Ray's own strategies put short tasks
on few nodes. The choice is soft: if a node dies, Ray repeats its shards on another one. Results wait in the object
stores of the nodes; the driver fetches one value at a time.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from togi.core.errors import Fault, InputError, WorkerDied
from togi.core.files import read_cache, write_json
from togi.recipe.cluster_probe import CURE, differences, looker
from togi.recipe.cluster_work import ClusterNode, connect, examine, first_line, leave, nodes
from togi.recipe.pool import AHEAD, unpacked
from togi.recipe.shard_worker import answer
from togi.stages.context import Context
from togi.stages.shards import ShardTask

RETRIES = 2  # times that Ray repeats a shard whose process or node died
PATIENCE = 30.0  # seconds without a value until the stage reports what it waits for
PLACES = "places.json"  # in the stage's folder: the number of shards done by each node


def do(task: dict[str, Any]) -> dict[str, Any]:
    """Does a shard on a node; returns its value or its error, the node, and the installed versions."""
    node = ray.get_runtime_context().get_node_id()
    return {**answer(ShardTask(**task)), "node": node, "versions": installed()}


@cache
def installed() -> dict[str, str]:
    """The versions that results depend on, as this process found them first."""
    return looker()("")["versions"]


@dataclass(frozen=True, slots=True)
class Given:
    """A shard that was sent to a node."""

    task: ShardTask
    node: str
    answer: Any


class RayShards:
    """The `ShardExecutor` on the cluster at `address`. It checks every node first; a node that joins later reports its
    installed versions with each shard."""

    apart = True

    def __init__(self, address: str, store: Path, context: Context) -> None:
        self.context = context
        self.names: dict[str, str] = {}
        self._address, self._store = address, store
        self._do = ray.remote(num_cpus=1, max_retries=RETRIES)(do)

    def values(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        """The values of the tasks, in their order."""
        if not tasks:
            return
        join(self._address, self._store)
        waiting: deque[Given] = deque()
        done: Counter[str] = Counter()
        try:
            for task in tasks:
                room = self._give(task, waiting)
                if len(waiting) > AHEAD * room:
                    yield self._take(waiting.popleft(), done)
            while waiting:
                yield self._take(waiting.popleft(), done)
        finally:
            for given in waiting:
                ray.cancel(given.answer)
            tell_places(self.context, Counter({self.names.get(node, node): count for node, count in done.items()}))

    def close(self) -> None:
        """Disconnects from the cluster."""
        leave()

    def _give(self, task: ShardTask, waiting: deque[Given]) -> int:
        """Sends a shard to the least busy node; returns how many shards the cluster does at a time."""
        alive = self._alive(task)
        node = min(alive, key=lambda each: self._busy(waiting)[each.id] / each.processors)
        where = NodeAffinitySchedulingStrategy(node.id, soft=True)
        waiting.append(Given(task, node.id, self._do.options(scheduling_strategy=where).remote(asdict(task))))
        return sum(each.processors for each in alive)

    def _alive(self, task: ShardTask) -> list[ClusterNode]:
        """The nodes that can do shards. Raises WorkerDied if there are none left."""
        try:
            alive = [node for node in nodes() if node.processors]
        except RayError as error:
            raise lost(task, first_line(error)) from None
        if not alive:
            raise lost(task, "no node with a processor is left")
        self.names |= {node.id: node.name for node in alive}
        return alive

    def _busy(self, waiting: deque[Given]) -> Counter[str]:
        """Shards left to do, by node."""
        answers = [given.answer for given in waiting]
        _, undone = ray.wait(answers, num_returns=len(answers), timeout=0) if answers else ([], [])
        return Counter(given.node for given in waiting if given.answer in undone)

    def _take(self, given: Given, done: Counter[str]) -> dict[str, Any]:
        """Waits for the value of a shard. Raises the error that the shard reported."""
        where = f"stage {given.task.stage}"
        try:
            found = self._fetched(given)
        except (RayTaskError, TaskCancelledError) as error:
            raise Fault(f"{where}: shard {given.task.number} stopped because of a bug in togi: {error}") from None
        except RayError as error:
            raise died(given.task, error) from None
        node = self.names.get(found["node"], "a node")
        refuse_other(given.task, node, found["versions"])
        done[found["node"]] += 1
        return unpacked(given.task, found)

    def _fetched(self, given: Given) -> dict[str, Any]:
        """A shard's answer. While waiting, it reports long waits and reacts to requests to stop."""
        while True:
            try:
                return ray.get(given.answer, timeout=PATIENCE)
            except GetTimeoutError:
                self.context.check_stop()
                free, all_ = (found.get("CPU", 0) for found in (ray.available_resources(), ray.cluster_resources()))
                self.context.log(
                    f"waiting for shard {given.task.number}: {free:g} of {all_:g} processors of the cluster are free"
                )


def join(address: str, store: Path) -> None:
    """Makes this process a client of the cluster, and checks every node, unless it is one already."""
    if not ray.is_initialized():
        connect(address)
        examine(store)


def tell_places(context: Context, done: Counter[str]) -> None:
    """Records how many shards each node, by its name, did, including earlier, interrupted runs."""
    path = context.folder / PLACES
    before = read_cache(path, {"shards": dict}) or {"shards": {}}
    shards = Counter(before["shards"]) + done
    write_json(path, {"shards": dict(shards)})
    context.log("shards by node: " + ", ".join(f"{name} {n}" for name, n in sorted(shards.items())))


def refuse_other(task: ShardTask, node: str, versions: dict[str, str]) -> None:
    """Raises InputError for a node with other versions than this machine; it joined after all were checked."""
    if other := differences(versions, installed()):
        raise InputError(f"stage {task.stage}: {node} joined with {other}; {CURE}")


def died(task: ShardTask, error: RayError) -> WorkerDied:
    """The error for a shard whose processes keep dying."""
    return WorkerDied(
        f"stage {task.stage}: the process that did shard {task.number} died {RETRIES + 1} times, most recently: "
        f"{first_line(error)} Everything finished is saved: run the same command again"
    )


def lost(task: ShardTask, why: str) -> WorkerDied:
    """The error for a cluster that cannot do the shard."""
    return WorkerDied(
        f"stage {task.stage}: the cluster is gone ({why}). Everything finished is saved: run the same command again"
    )
