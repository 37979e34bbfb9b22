"""A Ray cluster, used through Ray's public interface: its nodes, and whether each of them can work for this run."""

import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from togi.core.errors import InputError
from togi.core.files import write_text
from togi.recipe.cluster import RankNeeds, own_signals
from togi.recipe.cluster_probe import CURE, differences, looker

ANSWER_SECONDS = 120.0  # time limit for each node to answer
PAUSE = 0.2
TRIES = 3  # to connect: in Ray 2.60 the process that its client server starts for each client sometimes dies
TROUBLE = (ConnectionError, RuntimeError, ValueError, RayError)  # what Ray raises if it cannot connect


_holders = 0  # users of this process's connection


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node that is alive: its id, its name, how many processors and devices Ray may use there, and its address."""

    id: str
    name: str
    processors: int
    devices: int
    address: str = ""


def connect(address: str) -> None:
    """Makes this process a client of the cluster at `address`, until `leave` has been called once for each `connect`.
    Raises InputError if it cannot connect."""
    global _holders
    if _holders and ray.is_initialized():
        _holders += 1
        return
    with own_signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error repeats what they say
        try:
            _tried(address)
        except TROUBLE as error:
            raise InputError(
                f"--on {address}: cannot use a cluster there: {first_line(error)}; see `ray status`, and start one "
                "with `ray start --head`"
            ) from None
    _holders = 1


def _tried(address: str) -> None:
    for left in reversed(range(TRIES)):
        try:
            ray.init(address=address, namespace="togi", log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionAbortedError:
            if not left:
                raise


def leave() -> None:
    """Disconnects from the cluster when all its users have left."""
    global _holders
    _holders = max(0, _holders - 1)
    if not _holders:
        with own_signals():
            ray.shutdown()


def nodes() -> list[ClusterNode]:
    """The nodes that are alive, sorted by name."""
    alive = [each for each in ray.nodes() if each["Alive"]]
    names = [each["NodeName"] for each in alive]
    found = [
        ClusterNode(
            id=each["NodeID"],
            name=name if names.count(name) == 1 else f"{name} ({each['NodeID'][:8]})",
            processors=int(each["Resources"].get("CPU", 0)),
            devices=int(each["Resources"].get("GPU", 0)),
            address=each["NodeManagerAddress"],
        )
        for each, name in zip(alive, names, strict=True)
    ]
    return sorted(found, key=lambda node: (node.name, node.id))


def examine(store: Path, least: int = 1, ranks: Sequence[RankNeeds] = ()) -> str:
    """Checks that every node sees `store` and has the versions of this machine; returns a description of the cluster.
    Waits first until it has `least` nodes.

    Raises InputError, naming the nodes, if work would fail or give other bytes there, if there is no processor to use,
    and if there is no room for `ranks`.
    """
    store.mkdir(parents=True, exist_ok=True)
    mark = store / f".seen-{os.getpid()}"
    content = f"{os.getpid()} {time.time_ns()}"
    write_text(mark, content)
    try:
        found = _nodes_there(least)
        answers = _answers(found, mark)
    finally:
        mark.unlink()
    if blind := [node.name for node in found if answers[node.id]["sees"] != content]:
        raise InputError(
            f"{_named(blind)} of the cluster cannot see {store}: set TOGI_HOME to a folder on a file system that "
            "every node mounts at the same path"
        )
    here = looker()(str(mark))["versions"]
    other = {node.name: differences(answers[node.id]["versions"], here) for node in found}
    if told := [f"{_named([name])}: {what}" for name, what in other.items() if what]:
        raise InputError(f"{'; '.join(told)}; {CURE}")
    processors = sum(node.processors for node in found)
    if not processors:
        raise InputError(f"the cluster has no processor that Ray may use ({len(found)} nodes); see `ray status`")
    for needs in ranks:
        refuse_without_room(found, needs)
    whole = sizes(processors, sum(node.devices for node in found))
    return f"cluster: {_named([node.name for node in found])}, {whole}"


def _nodes_there(least: int) -> list[ClusterNode]:
    """Waits for `least` nodes and returns all nodes. Raises InputError if they do not join in time."""
    end = time.monotonic() + ANSWER_SECONDS
    while len(found := nodes()) < least:
        if time.monotonic() > end:
            raise InputError(f"the cluster has {len(found)} of {least} nodes after {ANSWER_SECONDS:g} s; see its log")
        time.sleep(PAUSE)
    return found


def _answers(found: list[ClusterNode], mark: Path) -> dict[str, dict[str, Any]]:
    """The answer of each node to the probe, by its id. Raises InputError for a node that does not answer."""
    look = ray.remote(num_cpus=0, max_retries=0)(looker())
    asked = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(str(mark))
        for node in found
    }
    answers = {}
    for node, answer in asked.items():
        try:
            answers[node.id] = ray.get(answer, timeout=ANSWER_SECONDS)
        except GetTimeoutError:
            raise InputError(
                f"{_named([node.name])} does not answer within {ANSWER_SECONDS:g} s; see `ray status`"
            ) from None
        except RayError as error:
            raise InputError(f"{_named([node.name])} cannot work: {first_line(error)}") from None
    return answers


def _named(names: list[str]) -> str:
    return f"node {names[0]}" if len(names) == 1 else f"nodes {', '.join(names)}"


def refuse_without_room(found: list[ClusterNode], needs: RankNeeds) -> dict[str, float]:
    """The resources of one rank, in Ray's terms: its threads and, if the cluster has GPUs, one GPU.

    Raises InputError if the nodes have no room for all ranks, even when idle.
    """
    devices = any(node.devices for node in found)
    room = sum(min(node.processors // needs.threads, node.devices if devices else needs.size) for node in found)
    if devices:
        room = min(room, max(0, sum(node.devices for node in found) - needs.services))
    if room < needs.size:
        have = ", ".join(f"{node.name} has {sizes(node.processors, node.devices)}" for node in found)
        wanted = f"{needs.words} and one GPU each{_beside(needs)}" if devices else needs.words
        raise InputError(
            f"stages.{needs.stage}.processes: the cluster has no room for {wanted}, only for {room} of them: {have}. "
            f"Set stages.{needs.stage}.processes to a lower number, lower --threads (the total of all ranks), or add "
            "nodes"
        )
    return {"CPU": needs.threads, **({"GPU": 1} if devices else {})}


def _beside(needs: RankNeeds) -> str:
    return f" in addition to {needs.services} service{'s' * (needs.services != 1)} with a GPU" if needs.services else ""


def sizes(processors: int, devices: int) -> str:
    """Processors and GPUs, in words."""
    found = [f"{processors} processor{'s' * (processors != 1)}"]
    return " and ".join([*found, *([f"{devices} GPU{'s' * (devices != 1)}"] if devices else [])])


def first_line(error: BaseException) -> str:
    """The first line of Ray's message for an error."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")[:300]
