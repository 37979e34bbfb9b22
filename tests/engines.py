"""Servers of a policy for tests, in separate processes: togi's own, over HTTP, and the fakes."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from grpo_runs import Bench, weights
from tiny_run import environment

from togi.client.endpoint import Endpoint
from togi.commands.serve import Place, serve
from togi.core.ranks import ALONE, Ranks
from togi.core.sources import ModelSource
from togi.serve.limits import Limits
from togi.stages.context import Context, Resolved
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_work import run

ENGINE: dict[str, Any] = {"model": "$there", "tolerance": 1e-3}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Process:
    """A server in a separate process, which can be killed and restarted at the same address. `{port}` in `command` is
    filled in; the server is up as soon as GET `probe` answers."""

    def __init__(self, home: Path, probe: str, *command: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._command = [sys.executable, *(part.replace("{port}", str(self.port)) for part in command)]
        self._home, self._probe = home, probe
        self.start()

    def start(self) -> None:
        with (self._home.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, env=environment(self._home), stdout=log, stderr=log)
        end = time.monotonic() + 600
        while time.monotonic() < end and self.process.poll() is None:
            if self.page(self._probe) is not None:
                return
            time.sleep(0.1)
        raise AssertionError("the server did not come up")

    def page(self, path: str) -> str | None:
        """The body that GET `path` returns; None while nothing answers."""
        url = self.url.removesuffix("/v1") + path
        with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(url, timeout=5) as found:
            return found.read().decode()
        return None

    def kill(self) -> None:
        """kill -9."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Forked(Process):
    """`togi serve` without the start of a process: forked from the test's own, so that nothing is imported twice."""

    def __init__(self, model: Path, home: Path, reward: bool) -> None:
        self._model, self._reward = model, reward
        super().__init__(home, "/health")

    def start(self) -> None:
        self.pid = os.fork()
        if not self.pid:
            self._serve()
        while self.page(self._probe) is None:
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), "the server did not come up"
            time.sleep(0.01)

    def _serve(self) -> None:
        try:
            os.environ["TOGI_COMPUTE"] = "float32"
            torch.set_num_threads(1)
            place = Place(host="127.0.0.1", port=self.port, key="", limits=Limits(), updates=not self._reward)
            source = ModelSource(kind="path", name=str(self._model), template="chatml")
            serve({"policy": source}, self._home / "cache", self._reward, place)
        finally:
            os._exit(1)

    def kill(self) -> None:
        """kill -9."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@contextmanager
def togi_serve(model: Path, home: Path, *more: str) -> Iterator[Process]:
    """`togi serve` with the model named `policy`."""
    named = ("--name", "policy", "--template", "chatml", "--port", "{port}")
    server = Process(home, "/health", "-m", "togi", "serve", str(model), *named, *more)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def fake(protocol: str, home: Path, letters: Sequence[int] = ()) -> Iterator[Process]:
    """A fake from tests/policy_servers.py."""
    file = str(Path(__file__).parent / "policy_servers.py")
    server = Process(home, "/v1/models", file, protocol, "{port}", json.dumps(letters))
    try:
        yield server
    finally:
        server.kill()


def context(bench: Bench, name: str, url: str, protocol: Any = "auto", ranks: Ranks = ALONE, **more: Any) -> Context:
    """A stage folder whose engine is the server at `url`."""
    made = bench.context(name, ranks)
    endpoint = Endpoint(name="there", urls=(url,), model="policy", protocol=protocol, **more)
    made.inputs["$there"] = Resolved("model", source=bench.source(), endpoint=endpoint)
    return made


def train(settings: TrainGrpo, made: Context) -> bytes:
    """Runs a whole stage and closes what it used; returns the weights."""
    with made.leaving:
        run(settings, made)
    return weights(made.folder)
