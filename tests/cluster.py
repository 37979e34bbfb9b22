"""A Ray cluster of two nodes on this machine, for the tests of one file."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from togi.recipe.cluster import cluster_work
from togi.recipe.local_cluster import LocalCluster

WAIT = 300.0  # seconds to wait for the nodes; a busy machine takes minutes
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))  # Ray reads it only when it is imported
os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def two_nodes(folder: Path) -> Iterator[LocalCluster]:
    """Two nodes of one processor each, whose processes can import the modules of tests/; `--on auto` finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        with LocalCluster(folder / "cluster.log", processors=1) as made:
            patch.setenv("RAY_ADDRESS", made.address)
            await_nodes(2)
            yield made


def await_nodes(count: int) -> None:
    """Returns as soon as the cluster has `count` living nodes."""
    work = cluster_work()
    work.connect("auto")
    end = time.monotonic() + WAIT
    while len(work.nodes()) != count:
        assert time.monotonic() < end, work.nodes()
        time.sleep(0.1)
    work.leave()


def kill_node(cluster: LocalCluster, name: str) -> None:
    """Kills a node's raylet, and with it everything that it started."""
    node = cluster.nodes[int(name.removeprefix("node-")) - 1]
    raylets = [p for p in psutil.Process(node.pid).children(recursive=True) if p.name() == "raylet"]
    assert len(raylets) == 1
    raylets[0].kill()
