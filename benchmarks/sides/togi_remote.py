"""Steps of the stage `train.grpo` with the embedded engine, or with `togi serve --updates` in a separate process.

The listener of finished steps waits here for the next request of the harness, while no server request is in flight.
`waiting` are the seconds in which the trainer waited for the server, for any kind of request.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import togi_grpo
import torch
from side import Side, versions

from togi.client.endpoint import Endpoint
from togi.client.live import LiveClient
from togi.core.codec import write_records
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_work import run

READY_SECONDS = 600
SHOWN = {"sampler_kl", "sampler_weight/max", "sampler_outside", "sampler_mismatch", "engine/probe"}


class Over(BaseException):
    """Raised when the harness requests no more repeats."""


class Steps:
    """Receives every finished step: the first one is the start, the others are measured."""

    def __init__(self, side: Side, folder: Path) -> None:
        self.side, self.metrics = side, folder / "metrics.jsonl"
        self.waited, self.began, self.first = 0.0, 0.0, True

    def hear(self, event: dict[str, Any]) -> None:
        """Receives the messages of the stage."""
        if event["event"] != "progress" or event["what"] != "steps":
            return
        seconds = time.perf_counter() - self.began
        if self.first:
            self.side.ready(versions=versions("togi"))
            self.first = False
        else:
            self.side.report(seconds, waiting=self.waited, **self._line())
        if not self.side.wait():
            raise Over
        self.waited, self.began = 0.0, time.perf_counter()

    def _line(self) -> dict[str, float]:
        """The metrics that the stage logged for the step."""
        line = json.loads(self.metrics.read_text().splitlines()[-1])
        phases = {f"{name}_seconds": line.get(f"time/{name}", 0.0) for name in ("publish", "sample", "store", "update")}
        return {**phases, **{name: line[name] for name in SHOWN if name in line}, "answer_tokens": line["num_tokens"]}

    def count_waits(self) -> None:
        """Counts the seconds in which the client of this process waits."""
        plain = LiveClient.wait

        def wait(client: LiveClient, future: Any) -> Any:
            began = time.perf_counter()
            try:
                return plain(client, future)
            finally:
                self.waited += time.perf_counter() - began

        LiveClient.wait = wait  # type: ignore[method-assign]


@contextmanager
def server(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """The URL of `togi serve`, with one thread on the given core."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    named = ["--name", "policy", "--template", "chatml", "--port", str(port), "--updates", "--dtype", "float32"]
    command = ["taskset", "-c", ",".join(map(str, config["server"])), sys.executable, "-m", "togi", "serve"]
    around = {**os.environ, "OMP_NUM_THREADS": "1", "TOGI_COMPUTE": "float32", "TOGI_HOME": str(folder / "home")}
    process = subprocess.Popen([*command, config["model"], *named], env=around, stdout=sys.stderr, stderr=sys.stderr)
    try:
        _wait_for(process, port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as asked:
            if not asked.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    raise SystemExit("togi serve did not come up")


def settings(config: dict[str, Any]) -> TrainGrpo:
    """The stage as in a recipe."""
    return togi_grpo.settings(
        config,
        save_every=10_000,
        staleness=config["staleness"],
        loss={"sampler_correction": {"level": "token", "mode": "truncate", "cap": 2.0}},
        **({"engine": {"model": "$there"}} if config["server"] else {}),
    )


def inputs(config: dict[str, Any], folder: Path, url: str) -> dict[str, Resolved]:
    """The policy, its server and its prompts."""
    write_records(folder / "prompts" / RECORDS_FILE, "prompts", togi_grpo.prompts(config))
    source = ModelSource(kind="path", name=config["model"], template="chatml")
    endpoint = Endpoint(name="there", urls=(url,), model="policy", protocol="togi")
    return {
        "$base": Resolved("model", source=source),
        "$there": Resolved("model", source=source, endpoint=endpoint),
        "$prompts": Resolved("prompts", folder=folder / "prompts"),
    }


def train(side: Side, folder: Path, url: str) -> None:
    """Runs the stage until the harness requests no more repeats."""
    steps = Steps(side, folder)
    steps.count_waits()
    context = Context(
        name="policy",
        folder=folder,
        cache=folder,
        seed=side.config["seed"],
        inputs=inputs(side.config, folder, url),
        control=Control(send=steps.hear),
        compute="float32",
    )
    with context.leaving:
        run(settings(side.config), context)


def main() -> None:
    side = Side()
    config = side.config
    if config["cores"]:
        os.sched_setaffinity(0, config["cores"])
        torch.set_num_threads(len(config["cores"]))
    with tempfile.TemporaryDirectory(prefix="bench-togi-") as name:
        folder = Path(name)
        try:
            if config["server"]:
                with server(config, folder) as url:
                    train(side, folder, url)
            else:
                train(side, folder, "http://127.0.0.1:9/v1")
        except Over:
            pass


if __name__ == "__main__":
    main()
