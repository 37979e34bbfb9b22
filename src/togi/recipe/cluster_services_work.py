"""Services of a run on a Ray cluster: an actor on a node owns each, and gets a GPU for it if the cluster has any.

A service takes none of the processors that Ray counts. It listens on the address of its node, because ranks on other
nodes use it too.
"""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from togi.core.errors import StageError
from togi.recipe.cluster_process_work import CALLS, PYTHON, ProcessActor, RemoteProcess, own_variables, quietly
from togi.recipe.cluster_work import TROUBLE, connect, first_line, leave, nodes
from togi.recipe.services import GUARDING, ServiceSpec, Started

PAUSE = 1.0  # seconds between two checks for a request to stop


def on_cluster(address: str, spec: ServiceSpec, log: Path, check_stop: Callable[[], None]) -> Started:
    """Starts a service on a node of the cluster.

    Raises StageError if no GPU becomes free within the time in which the service should be ready, and if the cluster is
    gone.
    """
    with ExitStack() as stack:
        connect(address)
        stack.callback(leave)
        found = nodes()
        devices = int(spec.device != "cpu" and any(node.devices for node in found))
        options = {"num_cpus": 0, "num_gpus": devices, "max_concurrency": CALLS}
        try:
            actor = ray.remote(ProcessActor).options(**options).remote()
            stack.callback(quietly, ray.kill, actor)
            node, port = _placed(actor, spec, check_stop)
            host = {each.id: each.address for each in (*found, *nodes())}[node]
            command = [PYTHON if part == sys.executable else part for part in spec.listening(host, port)]
            ray.get(actor.start.remote([PYTHON, *GUARDING, *command], own_variables(), {}, str(log)))
        except TROUBLE as error:
            raise StageError(
                f"service {spec.name} could not be started on the cluster: {first_line(error)}; see `ray status`"
            ) from None
        process = RemoteProcess(actor)
        threading.Thread(target=_write, args=(process, log), daemon=True).start()
        return Started(process, f"http://{host}:{port}", stack.pop_all().close, lambda: process.lost)


def _placed(actor: Any, spec: ServiceSpec, check_stop: Callable[[], None]) -> tuple[str, int]:
    """Waits until there is room for the actor; returns its node and a free port."""
    asked = actor.place.remote()
    end = time.monotonic() + spec.ready_seconds
    while time.monotonic() < end:
        check_stop()
        try:
            return ray.get(asked, timeout=PAUSE)
        except GetTimeoutError:
            continue
    free, all_ = (found.get("GPU", 0) for found in (ray.available_resources(), ray.cluster_resources()))
    raise StageError(
        f"service {spec.name} found no place on the cluster within {spec.ready_seconds:g} s: {free:g} of {all_:g} GPUs "
        "are free; see `ray status`, or raise ready_seconds"
    )


def _write(process: RemoteProcess, log: Path) -> None:
    """Writes the output of the service to its log; its standard error goes there directly."""
    for line in process.stdout:
        with log.open("a", encoding="utf-8") as output:
            output.write(line)
