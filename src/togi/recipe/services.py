"""Services: processes that stages need while they work, such as the server of a model.

A service is started before the first stage that needs it, is ready when it answers, is watched, and is stopped after
the last one. One that dies ends the stage that needs it, with what its log says; no wait is without a bound.
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
PROBE_SECONDS = 2.0  # one question whether it is ready
PAUSE = 0.2  # seconds between two of them
CLOSING = 15.0  # seconds until a service that is stopped is gone; its guard kills it after 10
SHOWN = 500  # characters of the last line of its log


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """How a service is started and who needs it. `{host}` and `{port}` in `command` are where it is to listen; `probe`
    is the path that answers once the service is ready, within `ready_seconds`; `stages` are the names of those that
    need it. It answers for the names in `also` too. On a cluster it gets a GPU, if there are any, unless `device` is
    cpu."""

    name: str
    command: tuple[str, ...]
    stages: tuple[str, ...]
    also: tuple[str, ...] = ()
    probe: str = "/health"
    ready_seconds: float = 300.0
    device: str = ""

    def listening(self, host: str, port: int) -> list[str]:
        """The command of a service that listens there."""
        return [part.replace("{host}", host).replace("{port}", str(port)) for part in self.command]


@dataclass(frozen=True, slots=True)
class Started:
    """The guard of a service, as a `subprocess.Popen`; where the service listens; what lets go of its place once it is
    gone, and why nobody knows how it ended."""

    process: Any
    url: str
    release: Callable[[], None] = lambda: None
    lost: Callable[[], str] = lambda: ""


Start = Callable[[ServiceSpec, Path, Callable[[], None]], Started]
"""Starts a service, whose output goes to a file. The function that it is given raises where someone asked to stop."""


def on_this_machine(spec: ServiceSpec, log: Path, check_stop: Callable[[], None]) -> Started:
    """A service of this machine, which nobody on another one reaches."""
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
    """A service that was started. Its output goes to `log`."""

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
        """Returns when the service answers. `check_stop` raises where someone asked to stop.

        Raises StageError where it ends before, or does not answer in time.
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
        """Waits a moment for the end of a service whose last answer failed."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PAUSE)

    @property
    def dead(self) -> bool:
        """Whether it ended though nobody stopped it."""
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
        """Ends the service and all that it started; returns when it is gone."""
        self._stopping = True
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(CLOSING)
        except subprocess.TimeoutExpired:  # someone halted the guard: with it the kernel kills the service
            self.process.kill()
            self.process.wait()
        self._started.release()

    def _watch(self) -> None:
        self.process.wait()
        if not self._stopping:
            self._died(self)


class Services:
    """The services of a run. `died` is called, from another thread, with the name of one that ends by itself."""

    def __init__(
        self, specs: Iterable[ServiceSpec], folder: Path, died: Callable[[str], None], start: Start = on_this_machine
    ) -> None:
        self._start = start
        self.specs = {spec.name: spec for spec in specs}
        self.running: dict[str, Service] = {}
        self._folder = folder
        self._died = died

    def urls(self, stage: str) -> dict[str, str]:
        """Where the services that a stage needs answer, by name."""
        return {name: self.running[spec.name].url for spec in self._needed(stage) for name in (spec.name, *spec.also)}

    def with_device(self, stage: str) -> int:
        """How many services that a stage needs take a GPU where there are any."""
        return sum(spec.device != "cpu" for spec in self._needed(stage))

    def before(self, stage: str, note: Callable[[str], None], check_stop: Callable[[], None]) -> None:
        """Starts what `stage` needs and waits until it answers. Raises StageError where a service does not come up."""
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
        """How a service ended that `stage` needs; None where all are alive."""
        found = [self.running[spec.name] for spec in self._needed(stage) if spec.name in self.running]
        for service in found:
            service.settle()
        dead = [service for service in found if service.dead]
        return f"{dead[0].end()} while stage {stage} needed it" if dead else None

    def after(self, left: Sequence[str]) -> None:
        """Stops what none of the stages in `left` needs."""
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
    """Whether something answers with anything but an error of its own; proxies of the environment are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PROBE_SECONDS) as found:
            return found.status < 400
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False
