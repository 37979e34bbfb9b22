"""The worker processes, as seen from the parent: one in all, or one per rank.

If a rank fails, the others wait for it in the middle of a step and must end too. The message of the failed rank must be
the one that is reported: the others only report that it is gone. So after the first sign of a failure, the parent waits
a short time for messages of other ranks, then chooses one as the cause and kills the ranks that still wait.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from togi.core.errors import Fault, WorkerDied
from togi.core.process import STOPPING as SIGNALS
from togi.recipe.greeting import GONE

# Settings of glibc for a training process. Freed memory stays with the process, so that it is not faulted in again
# (measured: 1.04 to 1.18 times the speed). No free lists of small blocks: aligned allocations leave such blocks next to
# them, and while those are in a free list, the hole of a freed tensor is slightly too small for the next tensor of the
# same size (this wasted 0.6 to 0.7 GB of the 2.2 to 2.5 GB in addition to weights, gradients and optimiser).
# In bfloat16, torch keeps compiled products for the last 1,024 shapes, twice: 0.5 GB and more where the number of rows
# changes from step to step. Products for 48 shapes are enough: a step of a dense model with adapters has about 40.
# Sampling, whose rows change most, takes 1 to 3 % longer. A variable that the user has set takes precedence.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "48",
    "LRU_CACHE_CAPACITY": "48",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
WORKER = ("-m", "togi.recipe.worker")  # then rank, number of ranks, meeting URL, and device number
COMMAND = (sys.executable, *WORKER)
SIGNS = 2.0  # seconds to wait for failures of other ranks
MEETING = ".ranks-"  # prefix of the folders, next to the log, in which ranks meet
CLOSING = 10.0  # seconds until idle processes have ended
STOPPING = 25.0  # seconds until the other ranks have stopped too, after one stopped on request


@dataclass(frozen=True, slots=True)
class RankEvent:
    """One event of one rank; if `event` is None, the rank has ended with the exit code `code`."""

    rank: int
    event: dict[str, Any] | None
    code: int = 0


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Rank `rank` of `size`. `meet_at` is torch's rendezvous URL; `local` is the rank's number on its machine, and so
    the number of its device."""

    rank: int
    size: int
    meet_at: str
    local: int

    @property
    def arguments(self) -> list[str]:
        return [str(self.rank), str(self.size), self.meet_at, str(self.local)]


class Worker:
    """The process of one rank, on this machine."""

    where = ""  # the machine, if there are several, for messages

    def __init__(self, log: Path, threads: int, place: RankPlace) -> None:
        self.rank = place.rank
        self.log = log_of(log, self.rank)
        environment = {**ENVIRONMENT, **os.environ, **counts(threads)}
        with self.log.open("ab") as errors:
            self.process: Any = start_process([*COMMAND, *place.arguments], environment, errors)

    def send(self, command: dict[str, Any]) -> None:
        """Sends the process a command. If the process has ended, `listen` reports that."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def listen(self, heard: "queue.SimpleQueue[RankEvent]") -> None:
        """Queues every event until the process ends; other output goes to the log."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = _event(line)
            if event is not None:
                heard.put(RankEvent(self.rank, event))
            else:
                with suppress(OSError), self.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
                    log.write(line)
        heard.put(RankEvent(self.rank, None, self.process.wait()))

    def end(self) -> str:
        """How the process, which left no message, ended, in words."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL); if nobody killed it, the machine ran out of memory: lower batch sizes"
        if code < 0:
            names = [each.name for each in signal.Signals if each == -code]
            return f"was ended by signal {names[0] if names else -code}; its log may show why: {self.log}"
        last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        what = f"; the last line of its log is: {last[0][:500]}" if last else ""
        return f"ended with exit code {code}, without a message{what}; its log is {self.log}"

    def wake(self) -> None:
        """Continues the process if someone has halted it (SIGSTOP): a halted process could not save its work and
        stop."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def dismiss(self) -> None:
        """Closes the input of the process, which then ends."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # from data that a dead process never read
            self.process.stdin.close()
        self.wake()

    def close(self, seconds: float) -> None:
        """Waits for the end of the dismissed process; kills it after `seconds`."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def log_of(log: Path, rank: int) -> Path:
    """The log of a rank's errors; `log` is that of rank 0."""
    return log if rank == 0 else log.with_name(f"{log.stem}-rank{rank}{log.suffix}")


def counts(threads: int) -> dict[str, str]:
    """The variables that set the number of threads of a process, which is recorded because bits depend on it.
    `threads` already respects the user's environment."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def start_process(command: list[str], environment: dict[str, str], errors: BinaryIO) -> "subprocess.Popen[str]":
    """Starts a process in which signals are blocked until it is ready for them: during its imports, a signal would end
    it without a message. Raises WorkerDied if the system cannot start another process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
    except OSError as error:
        raise WorkerDied(f"a worker could not be started: {error}; free some memory and try again") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _event(line: str) -> dict[str, Any] | None:
    """The event in one line of a worker's output; None for other lines, such as text that was printed at its start."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def is_echo(event: Mapping[str, Any]) -> bool:
    """Whether a rank only reports that another one is gone."""
    return event["event"] == "crashed" and GONE.search(event["error"]) is not None


@dataclass(slots=True)
class RankOutcomes:
    """How the ranks of a stage ended: their last events, and the exit codes of those that are gone."""

    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    failed: dict[int, dict[str, Any]] = field(default_factory=dict)
    crashed: dict[int, dict[str, Any]] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)

    def take(self, heard: RankEvent) -> bool:
        """Records an event if it is the last of its rank; returns whether it is."""
        if heard.event is None:
            self.gone[heard.rank] = heard.code
            return True
        kept = {"done": self.done, "failed": self.failed, "crashed": self.crashed}.get(heard.event["event"])
        if kept is not None:
            kept[heard.rank] = heard.event
        return kept is not None

    @property
    def trouble(self) -> bool:
        return bool(self.failed or self.crashed or self.gone)

    @property
    def silent(self) -> list[int]:
        """The ranks that ended without a message."""
        return [rank for rank in sorted(self.gone) if rank not in self.failed and rank not in self.crashed]

    @property
    def echoing(self) -> bool:
        """Whether ranks have only reported a missing rank so far: its end may take long to show."""
        return not self.silent and all(map(is_echo, (*self.failed.values(), *self.crashed.values())))

    @property
    def stopping(self) -> bool:
        """Whether ranks have only stopped on request so far."""
        return not self.gone and all(event["kind"] == "Interrupted" for event in self.failed.values())

    def waiting(self, ranks: Iterable[int]) -> list[int]:
        """Those of the ranks that are still working, or waiting for a rank that is not."""
        return [r for r in ranks if not (r in self.done or r in self.failed or r in self.gone)]

    def cause(self) -> tuple[int, dict[str, Any] | None]:
        """The rank that ended the stage, and its message if it left one.

        A rank that ended without a message is the cause, because the others only report its absence; otherwise it is
        the first rank that reported anything else.
        """
        if self.silent:
            return self.silent[0], None
        told = (*self.failed.items(), *self.crashed.items())
        return min(told, key=lambda item: (is_echo(item[1]), item[1]["when"]))


class Workers:
    """All ranks of a stage. `threads` is the total of all ranks."""

    def __init__(self, log: Path, threads: int, size: int = 1) -> None:
        self.size = size
        self._stopping = False
        log.parent.mkdir(parents=True, exist_ok=True)
        self._meeting = tempfile.TemporaryDirectory(prefix=MEETING, dir=log.parent)
        self.workers = {worker.rank: worker for worker in self.started(log, threads)}
        self._heard: queue.SimpleQueue[RankEvent] = queue.SimpleQueue()
        self._listeners = [
            threading.Thread(target=worker.listen, args=(self._heard,), daemon=True) for worker in self.workers.values()
        ]
        for listener in self._listeners:
            listener.start()

    def started(self, log: Path, threads: int) -> list[Worker]:
        """Starts the ranks that this process manages; the first one reports for all."""
        meet_at, each = f"file://{self._meeting.name}/ranks", max(1, threads // self.size)
        return [Worker(log, each, RankPlace(rank, self.size, meet_at, rank)) for rank in range(self.size)]

    def do(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Sends one stage and yields the events of the first rank; the last one is `done` or `failed`. Raises
        WorkerDied."""
        for worker in self.workers.values():
            worker.send(command)
        fates, speaker = RankOutcomes(), next(iter(self.workers))
        while len(fates.done) < len(self.workers) and not fates.trouble:
            heard = self._next()
            if not fates.take(heard) and heard.rank == speaker and heard.event is not None:
                yield heard.event
        if fates.trouble:
            yield self._failure(fates, command["name"])
        else:
            yield fates.done[speaker]

    def _next(self) -> RankEvent:
        """The next event. Waits one second at a time: a signal that comes just before this process sleeps does not wake
        it, and Python handles signals only while it is awake."""
        while True:
            with suppress(queue.Empty):
                return self._heard.get(timeout=1.0)
            for worker in self.workers.values():
                if self._stopping:
                    worker.wake()
                if (code := worker.process.poll()) is not None:  # its child processes may hold its output open
                    return RankEvent(worker.rank, None, code)

    def _failure(self, fates: RankOutcomes, stage: str) -> dict[str, Any]:
        """The failure of the rank that ended the stage; kills the ranks that wait for it. Raises WorkerDied and
        Fault."""
        start = time.monotonic()
        while fates.waiting(self.workers):
            left = start + (STOPPING if fates.stopping or fates.echoing else SIGNS) - time.monotonic()
            try:
                fates.take(self._heard.get(timeout=max(0.0, left)))
            except queue.Empty:
                break
        rank, event = fates.cause()
        for waiting in fates.waiting(self.workers):
            self.workers[waiting].process.kill()
        named = f" (rank {rank} of {self.size}{self.workers[rank].where})" if self.size > 1 else ""
        worker = f"stage {stage}: the worker{named}"
        saved = "Everything finished is saved"
        if event is None:
            raise WorkerDied(f"{worker} {self.workers[rank].end()}. {saved}: run the same command again")
        if is_echo(event):
            raise WorkerDied(
                f"{worker} lost another rank, which left no message: {event['error']}. {saved}: run the same command "
                "again"
            )
        if event["event"] == "crashed":
            log = self.workers[rank].log
            raise Fault(
                f"{worker} stopped because of a bug in togi: {event['error']}. The traceback is in {log}. {saved}"
            )
        same = [other for other in fates.failed.values() if other["message"] == event["message"]]
        return event if len(same) == len(self.workers) else {**event, "message": event["message"] + named}

    def stop(self) -> None:
        """Asks all ranks to save and stop. Continues halted ranks (SIGSTOP) first, because others wait for them."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        for worker in self.workers.values():
            worker.wake()

    def kill(self) -> None:
        """Ends all ranks at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for worker in self.workers.values():
            if worker.process.poll() is None:
                worker.process.send_signal(number)

    def close(self) -> None:
        """Ends all ranks."""
        for worker in self.workers.values():
            worker.dismiss()
        end = time.monotonic() + CLOSING
        for worker in self.workers.values():
            worker.close(max(0.0, end - time.monotonic()))
        for worker, listener in zip(self.workers.values(), self._listeners, strict=True):
            listener.join(timeout=2.5)
            if not listener.is_alive():  # else a child process holds its output open
                assert worker.process.stdout is not None
                worker.process.stdout.close()
        self._meeting.cleanup()


def clear_meetings(folder: Path) -> None:
    """Removes the meeting folders of killed runs. No run may be at work in `folder`."""
    for place in folder.glob(f"{MEETING}*"):
        shutil.rmtree(place, ignore_errors=True)
