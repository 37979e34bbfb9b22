"""The process that forks others for forked.py: one togi process for each order.

A forked process is like a started one: it has its own number, session, signals, environment, folder, arguments and
standard streams, as the order specifies, and nothing left behind by an earlier process, because this process only
imports and forks. For the processes that it starts itself it has its own server, forked from this one before it begins.
"""

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import forked

SIZE = 200_000  # largest order, in bytes
STOPPING = (signal.SIGINT, signal.SIGTERM)
STREAMS = 3  # descriptors of an order; a pipe for the exit status follows them


class End:
    """Ends this process as Python would, but without tearing down all modules, which takes half a second."""

    code = 1  # unless main sets another one

    def __call__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                self.code = self.code or 120
        os._exit(self.code)


class Forks:
    """Handles orders until no sender is left."""

    def __init__(self, orders: socket.socket) -> None:
        self.orders = orders
        self.children: dict[int, tuple[int, int]] = {}  # by pidfd: process number, and pipe for the exit status
        self.poll = select.poll()
        self.poll.register(orders, select.POLLIN)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # signals stay pending until a new process is ready

    def take(self) -> "tuple[dict[str, Any], list[int]] | None":
        """Returns an order and its descriptors in each forked process, and in this process None at the end."""
        while True:
            for found, _ in self.poll.poll():
                if found in self.children:
                    self._tell(found)
                    continue
                message, descriptors, _, _ = socket.recv_fds(self.orders, SIZE, STREAMS + 1)
                if not message:
                    return None
                order = json.loads(message)
                self._import(order["imports"])
                if self._fork(descriptors):
                    return order, descriptors

    def _import(self, names: list[str]) -> None:
        if any(name not in sys.modules for name in names):
            for name in names:
                importlib.import_module(name)
            gc.collect()
            gc.freeze()  # so that it stays shared with later processes

    def _fork(self, descriptors: list[int]) -> bool:
        """Whether this is the new process."""
        *streams, told = descriptors
        child = os.fork()
        if child == 0:
            self.orders.close()
            for descriptor, (_, pipe) in self.children.items():
                os.close(descriptor)
                os.close(pipe)
            return True
        for stream in streams:
            os.close(stream)
        os.write(told, forked.NUMBER.pack(child))
        watched = os.pidfd_open(child)
        self.children[watched] = (child, told)
        self.poll.register(watched, select.POLLIN)
        return False

    def _tell(self, watched: int) -> None:
        """Reports the exit status of a child."""
        child, told = self.children.pop(watched)
        self.poll.unregister(watched)
        os.close(watched)
        status = os.waitpid(child, 0)[1]
        with suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(told, forked.NUMBER.pack(status))
        os.close(told)


def become(order: dict[str, Any], descriptors: list[int]) -> None:
    """Turns this process into the one that was ordered."""
    for number, descriptor in enumerate(descriptors[:STREAMS]):
        os.dup2(descriptor, number)
    os.closerange(STREAMS, os.sysconf("SC_OPEN_MAX"))
    if order["session"]:
        os.setsid()
    show(order["command"])
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path[0] = order["folder"]
    sys.orig_argv[:] = order["command"]
    sys.argv = ["-m", *order["command"][3:]]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, anew(number, getattr(sys, name)))
        setattr(sys, f"__{name}__", getattr(sys, name))
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # starts anew in each process, like random and the hashes of Python


def anew(number: int, stream: Any) -> io.TextIOWrapper:
    """A new object for standard stream `number`, with the settings of `stream`; its descriptor has changed."""
    made = open(number, "w" if number else "r", encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
    made.reconfigure(line_buffering=stream.line_buffering, write_through=forked.UNBUFFERED in os.environ)
    return made


def show(command: list[str]) -> None:
    """Writes the command where `ps` and psutil read it."""
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = b"".join(os.fsencode(part) + b"\0" for part in command)[: end - begin - 1]
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(begin)
        memory.write(text.ljust(end - begin, b"\0"))


def own_server(environment: dict[str, str]) -> Forks | None:
    """Gives this process its own server. Returns None here, and the server's `Forks` in the server process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child != 0:
        theirs.close()
        forked.servers.append(forked.Server(ours, environment))
        subprocess.Popen = forked.Popen  # type: ignore[misc]
        atexit.register(os.waitpid, child, 0)
        atexit.register(ours.close)  # runs first, and ends that server
        return None
    ours.close()
    with open(os.devnull, "r+b") as nothing:
        for number in range(STREAMS):
            os.dup2(nothing.fileno(), number)
    return Forks(theirs)


def taken(forks: Forks) -> str | None:
    """The module that this process is to run, in each forked process; None in a server that is no longer needed."""
    environment = dict(os.environ)
    while (order := forks.take()) is not None:
        become(*order)
        module: str = order[0]["command"][2]
        own = own_server(environment) if module == "togi" else None
        if own is None:
            return module
        forks = own
    return None


def main() -> None:
    """Serves the socket whose descriptor the command line names; a forked process runs what was ordered."""
    end = End()
    atexit.register(end)  # registered first, so it runs last
    module = taken(Forks(socket.socket(fileno=int(sys.argv[1]))))
    if module is not None:
        sys.modules.pop("togi.__main__" if module == "togi" else module, None)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as error:
            end.code = error.code if isinstance(error.code, int) else int(error.code is not None)
            raise
    end.code = 0


if __name__ == "__main__":
    main()
