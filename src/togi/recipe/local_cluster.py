"""A Ray cluster on this machine, for trials: its nodes are as separate as those of two machines.

Each node is `ray start --block` under a guard, so none of them outlives the run, even if the run is killed.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from togi.core.errors import StageError
from togi.recipe.services import CLOSING, GUARD

NODES = 2
STORE_BYTES = 80_000_000  # of a node's object store; Ray takes no less than 75 MB
READY_SECONDS = 90.0


class LocalCluster:
    """`nodes` nodes with `processors` each, called node-1, node-2 and so on. Ray's output goes to `log`. Processes of
    the cluster connect to `address`; `client` is the client server, for machines that are not nodes. Using the cluster
    needs the token in `environment`. A `with` block adds that to the environment of this process; Ray reads it once,
    on import.

    Raises StageError if the cluster does not start.
    """

    def __init__(self, log: Path, nodes: int = NODES, processors: int = 0) -> None:
        self.log = log
        token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        self._before: dict[str, str | None] = {}
        self.processors = processors or max(1, len(os.sched_getaffinity(0)) // nodes)
        self.address, self.client = f"127.0.0.1:{_free_port()}", f"ray://127.0.0.1:{_free_port()}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="togi-"))  # a short path, because it contains sockets
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            ports = ("--port", _port(self.address), "--ray-client-server-port", _port(self.client))
            self.add("--head", *ports, "--temp-dir", str(self.folder), "--include-dashboard", "false")
            self._wait()
            for _ in range(nodes - 1):
                self.add("--address", self.address)
        except StageError:
            self.close()
            raise

    def add(self, *options: str) -> None:
        """Starts one more node."""
        name = f"node-{len(self.nodes) + 1}"
        command = [
            *(*GUARD, ray_command(), "start", "--block", "--node-ip-address", "127.0.0.1", "--node-name", name),
            *("--num-cpus", str(self.processors), "--object-store-memory", str(STORE_BYTES)),
            *("--disable-usage-stats", *options),
        ]
        environment = {**os.environ, **self.environment, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        environment["RAY_NUM_REDIS_GET_RETRIES"] = "60"  # to find the first node; 20 are too few on a busy machine
        with self.log.open("ab") as output:
            self.nodes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=environment,
                )
            )

    def close(self) -> None:
        """Ends all nodes; returns when they are gone."""
        for node in reversed(self.nodes):
            assert node.stdin is not None
            node.stdin.close()
        for node in self.nodes:
            try:
                node.wait(CLOSING)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self._before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, value in self._before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        self.close()

    def _wait(self) -> None:
        """Returns when the first node accepts connections."""
        host, port = self.address.split(":")
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and self.nodes[0].poll() is None:
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
                return
            time.sleep(0.1)
        raise StageError(f"a Ray cluster on this machine did not start; its log is {self.log}")


def ray_command() -> str:
    """The command `ray` of the environment that togi runs in."""
    return str(Path(sys.executable).with_name("ray"))


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
