"""togi processes forked from one that has already imported their modules, which saves most of their time.

`Popen` and `run` are drop-in versions of those of `subprocess`. They fork if that is equivalent to a start. They start
the process if it is not: another program, an environment that libraries read during import, a function to call first.
tests/fork_server.py does the forking. With TOGI_TESTS_FORK=0 in the environment every process is started.
"""

import atexit
import inspect
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.recipe.workers import ENVIRONMENT

NUMBER = struct.Struct("i")
ROOM = 4000  # longest command that the process list can show, in characters
UNBUFFERED = "PYTHONUNBUFFERED"  # the one such variable that a forked process can apply
READ_EARLY = ("PYTHON", "LD_", "MALLOC", "GLIBC", "OMP_", "MKL_", "OPENBLAS", "TORCH", "HF_", "TRANSFORMERS_", "CUDA")
"""Prefixes of variables that are read while Python starts or libraries are imported."""
LIGHT_COMMANDS = ("init", "plan", "check", "status", "show", "report", "list", "clean", "trace", "schema")
LIGHT = ("togi.cli", "togi.cli.run")
HEAVY = (*LIGHT, "numpy.random", "transformers.models.llama.modeling_llama", "togi.stages.training.memory_work")


@dataclass(frozen=True, slots=True)
class Server:
    """The socket for orders, and the environment in which the server imported everything."""

    orders: socket.socket
    environment: dict[str, str]

    def takes(self, given: dict[str, Any]) -> bool:
        """Whether the process requested from `subprocess.Popen` can be forked."""
        command, env = given["args"], given["env"] or dict(os.environ)
        early = {name for name in env if name.startswith(READ_EARLY) and name != UNBUFFERED}
        return (
            isinstance(command, list | tuple)
            and list(command[:2]) == [sys.executable, "-m"]
            and command[2].startswith("togi")
            and given["preexec_fn"] is None
            and not given["pass_fds"]
            and all(env[name] == self.environment.get(name) for name in early)
        )

    def send(self, given: dict[str, Any], descriptors: list[int]) -> None:
        """Orders a process; `descriptors` are its standard streams and the pipe for its exit status."""
        command = given["args"]
        heavy = command[2] == "togi.recipe.worker" or (command[2] == "togi" and (*command, "")[3] not in LIGHT_COMMANDS)
        order = {
            "command": command,
            "imports": HEAVY if heavy else LIGHT,
            "folder": os.path.abspath(given["cwd"] or "."),
            "environment": dict(given["env"] or os.environ),
            "session": given["start_new_session"],
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        }
        socket.send_fds(self.orders, [json.dumps(order).encode()], descriptors)


PARAMETERS = [*inspect.signature(subprocess.Popen._execute_child).parameters][1:]  # type: ignore[attr-defined]
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
servers: list[Server] = []
"""The server of this process, if it has one."""


def server() -> Server | None:
    """The server of this process, started on first use; None if forking is impossible or turned off."""
    if not servers and sys.platform == "linux" and os.environ.get("TOGI_TESTS_FORK") != "0":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment.pop(UNBUFFERED, None)
        program = str(Path(__file__).with_name("fork_server.py"))
        with theirs:
            command = [sys.executable, program, str(theirs.fileno()), "." * ROOM]
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], **streams)
        servers.append(Server(ours, environment))
        atexit.register(process.wait)
        atexit.register(ours.close)  # runs first, and ends the server
    return servers[0] if servers else None


class Popen(subprocess.Popen[Any]):
    """A process that is forked if possible. It is not a child of this one, so the server reports how it ended."""

    _fate = -1

    def _execute_child(self, *values: Any) -> None:
        given = dict(zip(PARAMETERS, values, strict=True))
        here = server()
        if here is None or not here.takes(given):
            super()._execute_child(*values)  # type: ignore[misc]
            return
        self._fate, told = os.pipe()
        wanted = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        streams = [number if stream == -1 else stream for number, stream in enumerate(wanted)]
        try:
            here.send(given, [*streams, told])
        finally:
            os.close(told)
            self._close_pipe_fds(*(given[name] for name in PIPES))
        self._child_created = True
        self.pid = NUMBER.unpack(os.read(self._fate, NUMBER.size))[0]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._fate == -1:
            return super()._try_wait(wait_flags)  # type: ignore[misc]
        if not select.select([self._fate], [], [], 0 if wait_flags else None)[0]:
            return 0, 0
        told = os.read(self._fate, NUMBER.size)
        os.close(self._fate)
        return self.pid, NUMBER.unpack(told)[0] if told else int(signal.SIGKILL)  # the server died

    def _internal_poll(self, *values: Any, **more: Any) -> int | None:
        if self._fate == -1:
            return super()._internal_poll(*values, **more)  # type: ignore[misc]
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                if self.returncode is None:
                    found, status = self._try_wait(os.WNOHANG)
                    if found:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(command: list[str], timeout: float | None = None, **more: Any) -> "subprocess.CompletedProcess[Any]":
    """Like `subprocess.run`, with the output captured."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more) as process:
        try:
            said, complained = process.communicate(timeout=timeout)
        finally:
            process.kill()  # no effect if it has ended
    return subprocess.CompletedProcess(command, process.returncode, said, complained)
