"""Services: processes that stages need while they work, such as the server of a model.

A service is started before the first stage that needs it, is ready when it answers, is watched, and is stopped after
the last one. If it dies, the stage that needs it ends, with the last line of its log; every wait has a limit.
"""

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from togi.core.errors import StageError

GUARDING = ("-m", "togi.recipe.service_guard")
GUARD = (sys.executable, *GUARDING)
LOCALHOST = "127.0.0.1"
PROBE_SECONDS = 2.0  # time limit of one check whether the service is ready
PAUSE = 0.2  # seconds between two checks
CLOSING = 15.0  # seconds until a stopped service has ended; its guard kills it after 10
SHOWN = 500  # characters of the last line of its log


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """How to start a service, and the stages that need it. `{host}` and `{port}` in `command` are the address on which
    it listens; `probe` is the path that answers when the service is ready, within `ready_seconds`; `stages` are the
    names of the stages that need it. It also serves the names in `also`. On a cluster it gets a GPU, if there are any,
    unless `device` is cpu."""

    name: str
    command: tuple[str, ...]
    stages: tuple[str, ...]
    also: tuple[str, ...] = ()
    probe: str = "/health"
    ready_seconds: float = 300.0
    device: str = ""

    def listening(self, host: str, port: int) -> list[str]:
        """The command of a service that listens on this address."""
        return [part.replace("{host}", host).replace("{port}", str(port)) for part in self.command]


@dataclass(frozen=True, slots=True)
class Started:
    """The guard of a service, as a `subprocess.Popen`; the address of the service; a function that releases its place
    when it has ended, and one that returns why its end is unknown."""

    process: Any
    url: str
    release: Callable[[], None] = lambda: None
    lost: Callable[[], str] = lambda: ""


Start = Callable[[ServiceSpec, Path, Callable[[], None]], Started]
"""Starts a service whose output goes to a file. The last argument is a function that raises if someone asked to
stop."""


def on_this_machine(spec: ServiceSpec, log: Path, check_stop: Callable[[], None]) -> Started:
    """Starts a service on this machine, which other machines cannot reach."""
    port = _free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*GUARD, *spec.listening(LOCALHOST, port)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(process, f"http://{LOCALHOST}:{port}")


class Service:
    """A running service. Its output goes to `log`."""

    def __init__(self, spec: ServiceSpec, log: Path, started: Started, died: Callable[["Service"], None]) -> None:
        self.spec = spec
        self.log = log
        self.url = started.url
        self.process = started.process
        self._started = started
        self._stopping = False
        self._died = died
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_ready(self, check_stop: Callable[[], None]) -> None:
        """Returns when the service answers. `check_stop` raises if someone asked to stop.

        Raises StageError if it ends before, or does not answer in time.
        """
        end = time.monotonic() + self.spec.ready_seconds
        while not _answers(self.url + self.spec.probe):
            check_stop()
            if self.process.poll() is not None:
                raise StageError(f"{self.end()} before it was ready")
            if time.monotonic() > end:
                raise StageError(
                    f"service {self.spec.name} did not answer at {self.url}{self.spec.probe} within "
                    f"{self.spec.ready_seconds:g} s; raise ready_seconds, or see its log, {self.log}"
                )
            time.sleep(PAUSE)

    def settle(self) -> None:
        """Waits a moment in case the service, whose last answer failed, is ending."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PAUSE)

    @property
    def dead(self) -> bool:
        """Whether it ended without being stopped."""
        return self.process.poll() is not None and not self._stopping

    def end(self) -> str:
        """How the service ended, in words."""
        code = self.process.wait()
        if lost := self._started.lost():
            return f"service {self.spec.name} is gone with its node ({lost}; its log is {self.log})"
        how = f"was ended by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
        last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        what = f"; the last line of its log is: {last[0][:SHOWN]}" if last else ""
        return f"service {self.spec.name} {how} (its log is {self.log}{what})"

    def stop(self) -> None:
        """Ends the service and its child processes; returns when they have ended."""
        self._stopping = True
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(CLOSING)
        except subprocess.TimeoutExpired:  # the guard is halted: when it is killed, the kernel kills the service
            self.process.kill()
            self.process.wait()
        self._started.release()

    def _watch(self) -> None:
        self.process.wait()
        if not self._stopping:
            self._died(self)


class Services:
    """The services of a run. `died` is called, from another thread, with the name of a service that ends by itself."""

    def __init__(
        self, specs: Iterable[ServiceSpec], folder: Path, died: Callable[[str], None], start: Start = on_this_machine
    ) -> None:
        self._start = start
        self.specs = {spec.name: spec for spec in specs}
        self.running: dict[str, Service] = {}
        self._folder = folder
        self._died = died

    def urls(self, stage: str) -> dict[str, str]:
        """The URLs of the services that a stage needs, by name."""
        return {name: self.running[spec.name].url for spec in self._needed(stage) for name in (spec.name, *spec.also)}

    def with_device(self, stage: str) -> int:
        """How many of the services that a stage needs take a GPU if there are any."""
        return sum(spec.device != "cpu" for spec in self._needed(stage))

    def before(self, stage: str, note: Callable[[str], None], check_stop: Callable[[], None]) -> None:
        """Starts the services that `stage` needs and waits until they answer. Raises StageError if one does not
        start."""
        for spec in self._needed(stage):
            service = self.running.get(spec.name)
            if service is not None and service.dead:
                service.stop()
                service = None
            if service is None:
                note(f"starting service {spec.name}, which stage {stage} needs")
                self._folder.mkdir(parents=True, exist_ok=True)
                log = self._folder / f"service-{spec.name}.log"
                started = self._start(spec, log, check_stop)
                service = Service(spec, log, started, lambda found: self._died(found.spec.name))
                self.running[spec.name] = service
            service.wait_ready(check_stop)

    def death(self, stage: str) -> str | None:
        """How a service that `stage` needs ended; None if all are alive."""
        found = [self.running[spec.name] for spec in self._needed(stage) if spec.name in self.running]
        for service in found:
            service.settle()
        dead = [service for service in found if service.dead]
        return f"{dead[0].end()} while stage {stage} needed it" if dead else None

    def after(self, left: Sequence[str]) -> None:
        """Stops the services that no stage in `left` needs."""
        for name in [name for name, spec in self.specs.items() if not any(stage in left for stage in spec.stages)]:
            if name in self.running:
                self.running.pop(name).stop()

    def close(self) -> None:
        """Stops all services."""
        self.after([])

    def _needed(self, stage: str) -> list[ServiceSpec]:
        return [spec for spec in self.specs.values() if stage in spec.stages]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((LOCALHOST, 0))
        return int(found.getsockname()[1])


def _answers(url: str) -> bool:
    """Whether the URL answers without a server error; ignores proxies of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PROBE_SECONDS) as found:
            return found.status < 400
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False
