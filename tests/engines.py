"""A policy's server for tests: togi's own, over HTTP, with what it is asked written down."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grpo_runs import Bench, weights
from tiny_run import environment

from togi.client.endpoint import Endpoint
from togi.core.ranks import ALONE, Ranks
from togi.stages.context import Context, Resolved
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_work import run

ENGINE: dict[str, Any] = {"model": "$there", "tolerance": 1e-3}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Process:
    """`togi serve` in a process of its own, which can be killed and started anew at the same address."""

    def __init__(self, model: Path, home: Path, *more: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._command = [
            sys.executable,
            "-m",
            "togi",
            "serve",
            str(model),
            "--name",
            "policy",
            "--port",
            str(self.port),
        ]
        self._command += more
        self._home = home
        self.start()

    def start(self) -> None:
        with (self._home.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, env=environment(self._home), stdout=log, stderr=log)
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError("the server did not come up")

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def process(model: Path, home: Path, *more: str) -> Iterator[Process]:
    server = Process(model, home, *more)
    try:
        yield server
    finally:
        server.kill()


def context(bench: Bench, name: str, url: str, protocol: Any = "auto", ranks: Ranks = ALONE, **more: Any) -> Context:
    """A stage folder whose engine is asked at `url`."""
    made = bench.context(name, ranks)
    endpoint = Endpoint(name="there", urls=(url,), model="policy", protocol=protocol, **more)
    made.inputs["$there"] = Resolved("model", source=bench.source(), endpoint=endpoint)
    return made


def train(settings: TrainGrpo, made: Context) -> bytes:
    """A whole stage, which closes what it used; the weights."""
    with made.leaving:
        run(settings, made)
    return weights(made.folder)
