"""Shards that local models compute, on a Ray cluster: actors hold the models and do one shard after the other.

An actor, a *holder*, is bound to its node. It takes one processor per thread of a shard or, if a model may use a card
and the cluster has any, one processor and one card. So processors and cards bound the number of models on a node. If a
holder ends, with its node or alone, others do the shards that it was given, and where there is room a new holder
starts. Ray's tasks would not do: their processes change, and a process that has used a card keeps it.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from togi.core.errors import Fault, InputError, WorkerDied
from togi.recipe.cluster_process_work import own_variables, quietly
from togi.recipe.cluster_shards_work import (
    PATIENCE,
    RETRIES,
    died,
    do,
    installed,
    join,
    lost,
    refuse_other,
    tell_places,
)
from togi.recipe.cluster_work import ClusterNode, first_line, leave, nodes, sizes
from togi.recipe.pool import unpacked
from togi.recipe.workers import counts
from togi.stages.context import Context
from togi.stages.shards import ShardTask

GIVEN = 2  # shards that a holder has at a time: the one that it does, and the next
AHEAD = 16  # shards per holder that may be done in advance; their values wait in memory
PAUSE = 1.0  # seconds between two looks at the nodes, and at requests to stop


class Holder:
    """An actor that does shards and keeps their models. `environment` replaces variables before torch is imported."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)

    def ready(self) -> dict[str, str]:
        """The installed versions, as soon as the actor runs."""
        return installed()

    def do(self, task: dict[str, Any]) -> dict[str, Any]:
        """Does a shard; returns its value or its error, and the node."""
        return do(task)


@dataclass(eq=False, slots=True)
class Held:
    """A holder on a node, and the shards given to it: their places among all shards, and their answers. `starting` is
    the awaited answer that the holder is ready; until that comes, the holder gets no shards."""

    actor: Any
    node: str
    starting: Any
    given: deque[tuple[int, Any]] = field(default_factory=deque)

    @property
    def awaited(self) -> Any:
        """The answer that comes next; None if it has nothing to do."""
        return self.starting or (self.given[0][1] if self.given else None)


class RayModels:
    """The `ShardExecutor` on the cluster at `address`, for shards of one stage that models compute."""

    apart = True

    def __init__(self, address: str, store: Path, context: Context) -> None:
        self.context = context
        self._address, self._store = address, store
        self._work: Work | None = None

    def values(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        """The values of the tasks, in their order."""
        if not tasks:
            return
        join(self._address, self._store)
        work = self._work = Work(self.context, tasks)
        try:
            yield from work.values()
        finally:
            work.end()

    def close(self) -> None:
        """Ends the holders and disconnects from the cluster."""
        if self._work is not None:
            self._work.end()
        leave()


class Work:
    """The shards of one stage, and the holders that do them. A shard is known by its place among `tasks`."""

    def __init__(self, context: Context, tasks: Sequence[ShardTask]) -> None:
        self.context, self.tasks = context, tasks
        self.holders: list[Held] = []
        self.left = deque(range(len(tasks)))  # not given to a holder, in order
        self.answers: dict[int, dict[str, Any]] = {}
        self.done: Counter[str] = Counter()  # by the name of the node
        self.names: dict[str, str] = {}
        self._deaths: Counter[int | str] = Counter()  # by shard, and of starting holders by node
        self._looked = float("-inf")
        self._heard = time.monotonic()
        self._card: bool | None = None

    def values(self) -> Iterator[dict[str, Any]]:
        """The values in the order of the tasks. Raises what `ShardExecutor` says, InputError if no node has room."""
        for place, task in enumerate(self.tasks):
            self._advance(place)
            while place not in self.answers:
                self._hear(task)
                self._advance(place)
            found = self.answers.pop(place)
            name = self.names.get(found["node"], "a node")
            self.done[name] += 1
            value = unpacked(task, found, name)
            if place + 1 == len(self.tasks):
                self.end()  # makes room for the holders of the stage's next phase
            yield value

    def end(self) -> None:
        """Ends the holders, and records which nodes did how many shards. Does nothing the second time."""
        for held in self.holders:
            quietly(ray.kill, held.actor)
        if self.done:
            tell_places(self.context, self.done)
        self.holders, self.done = [], Counter()

    # --- holders ------------------------------------------------------------------------------------------------------

    def _advance(self, place: int) -> None:
        """Starts holders where there is room, and gives them shards; the one at `place` is needed next."""
        if time.monotonic() > self._looked + PAUSE:
            self._start(self._nodes(self.tasks[place]), self.tasks[place])
            self._looked = time.monotonic()
        running = [held for held in self.holders if held.starting is None]
        while self.left and running and self.left[0] < place + AHEAD * len(running):
            held = min(running, key=lambda each: len(each.given))
            if len(held.given) == GIVEN:
                return
            next_ = self.left.popleft()
            held.given.append((next_, held.actor.do.remote(asdict(self.tasks[next_]))))

    def _nodes(self, task: ShardTask) -> list[ClusterNode]:
        """The living nodes. Raises WorkerDied if there are none left."""
        try:
            alive = nodes()
        except RayError as error:
            raise lost(task, first_line(error)) from None
        if not alive:
            raise lost(task, "no node is left")
        self.names |= {node.id: node.name for node in alive}
        return alive

    def _start(self, alive: Sequence[ClusterNode], task: ShardTask) -> None:
        """Starts holders, as many as there is room for and shards are left, on each node in turn."""
        if self._card is None:
            self._card = _wants_card(self.tasks, alive)
        room = {node.id: self._room(node) for node in alive}
        if not any(room.values()):
            raise InputError(_no_room(task, alive, card=self._card))
        undone = len(self.left) + sum(len(held.given) for held in self.holders)
        while len(self.holders) < undone:
            here = Counter(held.node for held in self.holders)
            free = [node for node in room if here[node] < room[node]]
            if not free:
                return
            self.holders.append(self._started(min(free, key=lambda node: here[node]), task))

    def _room(self, node: ClusterNode) -> int:
        """How many holders a node has room for, when it is idle."""
        return min(node.processors, node.devices) if self._card else node.processors // self.tasks[0].threads

    def _started(self, node: str, task: ShardTask) -> Held:
        environment = {**own_variables(), **counts(task.threads), "TOKENIZERS_PARALLELISM": "false"}
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        takes = {"num_cpus": 1, "num_gpus": 1} if self._card else {"num_cpus": task.threads}
        actor = ray.remote(Holder).options(scheduling_strategy=where, **takes).remote(environment)
        return Held(actor, node, actor.ready.remote())

    # --- answers ------------------------------------------------------------------------------------------------------

    def _hear(self, task: ShardTask) -> None:
        """Waits for the next answer of a holder. Reacts to requests to stop, and reports long waits for `task`."""
        awaited = {held.awaited: held for held in self.holders if held.awaited is not None}
        ready, _ = ray.wait(list(awaited), num_returns=1, timeout=PAUSE)
        for answer in ready:
            self._take(awaited[answer], answer)
            self._heard = time.monotonic()
        if ready:
            return
        self.context.check_stop()
        if time.monotonic() > self._heard + PATIENCE:
            self._heard = time.monotonic()
            free, all_ = ray.available_resources(), ray.cluster_resources()
            told = ", ".join(
                f"{free.get(what, 0):g} of {all_[what]:g} {what}s" for what in ("CPU", "GPU") if what in all_
            )
            self.context.log(f"waiting for shard {task.number}: the cluster has {told} free")

    def _take(self, held: Held, answer: Any) -> None:
        """Takes an answer. Raises Fault for a bug in togi, InputError for a holder with other versions."""
        task = self.tasks[held.given[0][0] if held.given else 0]
        try:
            found: Any = ray.get(answer)
        except RayTaskError as error:
            raise Fault(f"stage {task.stage}: shard {task.number} stopped because of a bug in togi: {error}") from None
        except RayError as error:
            self._lose(held, error)
            return
        if held.starting is not None:
            refuse_other(task, self.names.get(held.node, "a node"), found)
            held.starting = None
        else:
            place, _ = held.given.popleft()
            self.answers[place] = found

    def _lose(self, held: Held, error: RayError) -> None:
        """Gives the shards of an ended holder to others. Raises WorkerDied if holders keep dying on one shard, or as
        they start."""
        self.holders.remove(held)
        quietly(ray.kill, held.actor)
        for other in self.holders:
            if other.node == held.node and other.awaited is None:  # it may have died too
                other.starting = other.actor.ready.remote()
        self._count(held, error)
        self.left = deque(sorted([*self.left, *(place for place, _ in held.given)]))
        self._looked = float("-inf")

    def _count(self, held: Held, error: RayError) -> None:
        """Counts the death of a holder, for the shard that it was doing or for its node, if that is still there."""
        place = held.given[0][0] if held.given else None
        if place is None and held.node not in [node.id for node in self._nodes(self.tasks[0])]:
            return
        cause = held.node if place is None else place
        self._deaths[cause] += 1
        if self._deaths[cause] <= RETRIES:
            return
        if place is not None:
            raise died(self.tasks[place], error)
        where = f"stage {self.tasks[0].stage}, on {self.names.get(held.node, 'a node')}"
        raise WorkerDied(
            f"{where}: the processes for shards die as they start, most recently: {first_line(error)} Everything "
            "finished is saved: run the same command again"
        )


def _wants_card(tasks: Sequence[ShardTask], alive: Sequence[ClusterNode]) -> bool:
    """Whether a holder takes a card. Raises InputError if a model must be on a card and the cluster has none."""
    devices = any(node.devices for node in alive)
    named = [task for task in tasks if task.device.startswith("cuda")]
    if named and not devices:
        raise InputError(
            f"stage {named[0].stage}: its model has `device: {named[0].device}`, but no node of the cluster has a GPU "
            "that Ray may use; change `device` under models:, add such nodes, or run without --on"
        )
    return devices and any(task.device != "cpu" for task in tasks)


def _no_room(task: ShardTask, alive: Sequence[ClusterNode], *, card: bool) -> str:
    have = ", ".join(f"{node.name} has {sizes(node.processors, node.devices)}" for node in alive)
    needs = sizes(1 if card else task.threads, int(card))
    cure = "add nodes" if card else "lower --threads, or add nodes"
    return f"stage {task.stage}: a shard needs {needs} of one node, but {have}; {cure}"
