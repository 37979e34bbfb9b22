"""A process on a node of a Ray cluster, used like a local one.

An actor starts the process on its node, owns it, and forwards its output and input. If the actor ends, with its node or
with the run, the input of the process closes, and so the process ends.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from togi.recipe.cluster_work import TROUBLE, first_line
from togi.recipe.workers import start_process

CALLS = 4  # concurrent calls of an actor: one waits for output of its process, the others are short
POLL = 5.0  # seconds that a request for output waits on the node
SILENCE = 90.0  # seconds without an answer after which the actor is given up
DRAINING = 2.0  # seconds to read the last output of an ended process
PYTHON = "{python}"  # in a command: the interpreter of the node's own togi
OURS = "TOGI_"  # prefix of the variables that a process takes from this one; none of them is a secret
LOST = -signal.SIGKILL  # the exit code of a process whose end is unknown


class ProcessActor:
    """Owns a process on a node. Its output is kept until it is requested."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str]
        self._said: queue.SimpleQueue[str | int] = queue.SimpleQueue()

    def place(self) -> tuple[str, int]:
        """The id of the node, and a free port there."""
        with socket.socket() as found:
            found.bind(("", 0))
            port = int(found.getsockname()[1])
        return ray.get_runtime_context().get_node_id(), port

    def start(self, command: list[str], environment: dict[str, str], defaults: dict[str, str], log: str) -> None:
        """Starts the process in the environment of this node, which `environment` overrides and which overrides
        `defaults`."""
        found = [sys.executable if part == PYTHON else part for part in command]
        with Path(log).open("ab") as errors:
            self._process = start_process(found, {**defaults, **os.environ, **environment}, errors)
        threading.Thread(target=self._listen, daemon=True).start()

    def heard(self, seconds: float) -> list[str | int]:
        """The lines that the process wrote since the last call, and finally its exit code. Waits at most `seconds` for
        the first of them."""
        found = []
        with suppress(queue.Empty):
            found.append(self._said.get(timeout=seconds))
            while True:
                found.append(self._said.get_nowait())
        return found

    def obey(self, kind: str, value: Any) -> None:
        """Writes text to the process, closes its input, or sends it a signal."""
        assert self._process.stdin is not None
        if kind == "signal":
            self._process.send_signal(value)
            return
        with suppress(BrokenPipeError):  # it has ended, which `heard` reports
            if kind == "write":
                self._process.stdin.write(value)
                self._process.stdin.flush()
            else:
                self._process.stdin.close()

    def _listen(self) -> None:
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        code = self._process.wait()
        reader.join(DRAINING)  # children of the process may hold its output open
        self._said.put(code)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)


class RemoteProcess:
    """The process that `actor` owns, used like a `subprocess.Popen`.

    Only `wait` waits for the cluster: a separate thread sends the orders, in sequence, so a signal handler may give
    orders too.
    """

    def __init__(self, actor: Any) -> None:
        self.stdin, self.stdout = RemoteInput(self._order), RemoteOutput(self._lines)
        self.returncode: int | None = None
        self.lost = ""  # why its end is unknown
        self._actor = actor
        self._ended = threading.Event()
        self._orders: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._carry, daemon=True).start()

    def poll(self) -> int | None:
        """The exit code; None while the process is running, as far as is known."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code, after all output of the process was read. Raises subprocess.TimeoutExpired."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a process on a node", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        self._order("signal", int(number))

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _order(self, kind: str, value: Any = None) -> None:
        self._orders.put((kind, value))

    def _carry(self) -> None:
        for order in iter(self._orders.get, None):
            with suppress(*TROUBLE):  # if the actor is gone, `_lines` ends
                ray.get(self._actor.obey.remote(*order))

    def _lines(self) -> Iterator[str]:
        """The output lines of the process, until it ends; reading them also sets the exit code."""
        while self.returncode is None:
            try:
                found = ray.get(self._actor.heard.remote(POLL), timeout=POLL + SILENCE)
            except TROUBLE as error:
                self.lost, found = first_line(error), [LOST]
            for each in found:
                if isinstance(each, str):
                    yield each
                else:
                    self.returncode = each
        self._orders.put(None)
        self._ended.set()


class RemoteInput:
    """The standard input of a process on a node."""

    def __init__(self, order: Callable[..., None]) -> None:
        self._order = order
        self._text = ""

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        self._order("write", self._text)
        self._text = ""

    def close(self) -> None:
        self._order("close")


class RemoteOutput:
    """The standard output of a process on a node, line by line."""

    def __init__(self, lines: Callable[[], Iterator[str]]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        return self._lines()

    def close(self) -> None:
        """Does nothing: the output ends with the actor."""


def own_variables() -> dict[str, str]:
    """The environment variables that a process on a node takes from this one."""
    return {name: value for name, value in os.environ.items() if name.startswith(OURS)}


def quietly(do: Callable[[Any], None], what: Any) -> None:
    """Releases something on the cluster, which may be gone already."""
    with suppress(*TROUBLE):
        do(what)
