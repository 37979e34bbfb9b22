"""Two torchrun agents on this machine, each with one rank, as if on two machines."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tiny_run import environment

TWO_RANKS = """\
name: tiny
seed: 3
models:
  base: {path: model, template: chatml}
data:
  dialogs: {path: chats.jsonl}
stages:
  taught:
    type: train.sft
    init: $base
    chats: $dialogs
    batch_size: 2
    epochs: 8
    learning_rate: 1e-3
    save_every: 2
    micro_batch_tokens: 64
    processes: 2
"""
"""A recipe whose training runs on two ranks."""


@dataclass
class Agents:
    """The processes that were started; each pair of agents has its own rendezvous."""

    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, homes: list[Path], *arguments: str, first: tuple[str, ...] = ()) -> "Agents":
        """Starts `togi ARGUMENTS` as two ranks, each with its own home; only rank 0 gets the arguments `first`."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        for node, home in enumerate(homes):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)]
            command += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
            command += ["-m", "togi", *arguments, *(first if node == 0 else ())]
            self.processes.append(
                subprocess.Popen(
                    command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        return self

    def rank(self, number: int) -> psutil.Process:
        """The `togi run` process of a rank of the last two agents."""
        (found,) = psutil.Process(self.processes[number - 2].pid).children()
        return found

    def after_steps(self, home: Path, count: int) -> "Agents":
        """Returns as soon as `count` steps are done."""
        while sum(path.read_bytes().count(b"\n") for path in home.glob("store/train.sft-*/metrics.jsonl")) < count:
            assert all(process.poll() is None for process in self.processes[-2:]), self.ended()
            time.sleep(0.005)
        return self

    def ended(self) -> list[tuple[int, str]]:
        """Exit code and output of each of the last two agents. The timeout of minutes allows for a busy machine."""
        last = self.processes[-2:]
        said = [process.communicate(timeout=240)[0] for process in last]
        return [(process.returncode, " ".join(text.split())) for process, text in zip(last, said, strict=True)]


@contextmanager
def two_agents() -> Iterator[Agents]:
    """Starts agents; none of them outlives the block."""
    made = Agents()
    try:
        yield made
    finally:
        for process in made.processes:
            if process.poll() is None:
                for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    each.kill()
                process.communicate()
