"""A Ray cluster, through Ray's public interface: its nodes, and whether each of them can work for this run."""

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

ANSWER_SECONDS = 120.0  # in which each node answers that was asked
PAUSE = 0.2
TRIES = 3  # of connecting: in Ray 2.60 the process that its server for clients starts for each dies now and then
TROUBLE = (ConnectionError, RuntimeError, ValueError, RayError)  # what Ray raises where it cannot connect


_holders = 0  # of this process's connection


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A living node: its id, its name, how many processors and devices Ray may use there, and its address."""

    id: str
    name: str
    processors: int
    devices: int
    address: str = ""


def connect(address: str) -> None:
    """Makes this process a client of the cluster at `address`, until `leave` was called as often. Raises InputError
    where that cannot be."""
    global _holders
    if _holders and ray.is_initialized():
        _holders += 1
        return
    with own_signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say, the error says too
        try:
            _tried(address)
        except TROUBLE as error:
            raise InputError(
                f"--on {address}: no cluster can be used there: {first_line(error)}; see `ray status`, and start one "
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
    """Lets go of the cluster, once all have who use it."""
    global _holders
    _holders = max(0, _holders - 1)
    if not _holders:
        with own_signals():
            ray.shutdown()


def nodes() -> list[ClusterNode]:
    """The nodes that are alive, in the order of their names."""
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
    """Asks every node whether it sees `store` and has the versions of this machine; what the cluster has, in words.
    Waits first until `least` nodes are there.

    Raises InputError, which names the nodes, where work would fail or give other bytes there, and where there is no
    processor to work with, or no room for `ranks`.
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
            f"{_named(blind)} of the cluster does not see {store}: set TOGI_HOME to a folder on a file system that "
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
    """The nodes, once there are `least`. Raises InputError where they do not come."""
    end = time.monotonic() + ANSWER_SECONDS
    while len(found := nodes()) < least:
        if time.monotonic() > end:
            raise InputError(f"the cluster has {len(found)} of {least} nodes after {ANSWER_SECONDS:g} s; see its log")
        time.sleep(PAUSE)
    return found


def _answers(found: list[ClusterNode], mark: Path) -> dict[str, dict[str, Any]]:
    """What each node says to the probe, by its id. Raises InputError for a node that does not answer."""
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
    """What one rank takes of the cluster, in Ray's words: its threads and, where the cluster has GPUs, one of them.

    Raises InputError where the nodes have no room for all ranks, even with nothing else to do.
    """
    devices = any(node.devices for node in found)
    room = sum(min(node.processors // needs.threads, node.devices if devices else needs.size) for node in found)
    if devices:
        room = min(room, max(0, sum(node.devices for node in found) - needs.services))
    if room < needs.size:
        have = ", ".join(f"{node.name} has {sizes(node.processors, node.devices)}" for node in found)
        wanted = f"{needs.words} and one GPU each{_beside(needs)}" if devices else needs.words
        raise InputError(
            f"stages.{needs.stage}.processes: the cluster has no room for {wanted}, but for {room} of them: {have}. "
            f"Set stages.{needs.stage}.processes to a lower number, lower --threads (those of all ranks together), or "
            "add nodes"
        )
    return {"CPU": needs.threads, **({"GPU": 1} if devices else {})}


def _beside(needs: RankNeeds) -> str:
    return f" beside {needs.services} service{'s' * (needs.services != 1)} with a GPU" if needs.services else ""


def sizes(processors: int, devices: int) -> str:
    """Processors and GPUs, in words."""
    found = [f"{processors} processor{'s' * (processors != 1)}"]
    return " and ".join([*found, *([f"{devices} GPU{'s' * (devices != 1)}"] if devices else [])])


def first_line(error: BaseException) -> str:
    """What Ray says of an error, short."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")[:300]
