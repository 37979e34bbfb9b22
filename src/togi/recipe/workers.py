"""The processes that do the work, seen from the parent: one, or one a rank.

A rank that fails must end the others, which wait for it in the middle of a step, and its message must be the one that
is told: what the others say is only that it is gone. So the first sign of a failure opens a short time in which the
others may show theirs; then one is chosen as the cause, and what still waits is killed.
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

# What a training process needs on glibc. Freed memory stays with the process, so that it is not faulted in again (1.04
# to 1.18 times the speed, measured). No lists of small free blocks: aligned memory leaves such blocks beside it, and
# while they are in a list, the hole of a freed tensor is a little too small for the next of the same size (that was 0.6
# to 0.7 GB of 2.2 to 2.5 above weights, gradients and optimiser). A variable that the user has set wins.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
WORKER = ("-m", "togi.recipe.worker")  # then rank, number of ranks, where they meet, and the device's number
COMMAND = (sys.executable, *WORKER)
SIGNS = 2.0  # seconds in which other ranks may show that they failed too
MEETING = ".ranks-"  # how the folders begin in which ranks meet, beside the log
CLOSING = 10.0  # seconds until processes that have nothing left to do are gone
STOPPING = 25.0  # seconds until the others have stopped as well, once one of them was asked to and did


@dataclass(frozen=True, slots=True)
class RankEvent:
    """One event of one rank; None: the rank is gone, with this exit code."""

    rank: int
    event: dict[str, Any] | None
    code: int = 0


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Rank `rank` of `size`. `meet_at` is a URL of torch's where they meet; `local` counts the ranks of one machine, of
    which each has a device of its own."""

    rank: int
    size: int
    meet_at: str
    local: int

    @property
    def arguments(self) -> list[str]:
        return [str(self.rank), str(self.size), self.meet_at, str(self.local)]


class Worker:
    """The process of one rank, on this machine."""

    where = ""  # on which of several machines, for messages

    def __init__(self, log: Path, threads: int, place: RankPlace) -> None:
        self.rank = place.rank
        self.log = log_of(log, self.rank)
        environment = {**ENVIRONMENT, **os.environ, **counts(threads)}
        with self.log.open("ab") as errors:
            self.process: Any = start_process([*COMMAND, *place.arguments], environment, errors)

    def send(self, command: dict[str, Any]) -> None:
        """Gives the process something to do; that it is gone shows in what is heard of it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def listen(self, heard: "queue.SimpleQueue[RankEvent]") -> None:
        """Passes on every event until the process is gone; what else stands on its output goes to the log."""
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
        """How the process, which is gone and said nothing, ended."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL); when nobody did that, the machine ran out of memory: lower batch sizes"
        if code < 0:
            names = [each.name for each in signal.Signals if each == -code]
            return f"was ended by signal {names[0] if names else -code}; what led to it may stand in {self.log}"
        last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        what = f"; the last line of its log is: {last[0][:500]}" if last else ""
        return f"ended itself with exit code {code}, without a word{what}; its log is {self.log}"

    def wake(self) -> None:
        """Lets the process go on if someone has stopped it (SIGSTOP): it could not stop in good order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def dismiss(self) -> None:
        """Lets the process leave: it does when its input closes."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # of what a dead process never read
            self.process.stdin.close()
        self.wake()

    def close(self, seconds: float) -> None:
        """Returns when the process, which was dismissed, is gone; it is killed after `seconds`."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def log_of(log: Path, rank: int) -> Path:
    """Where a rank's errors go; `log` is that of rank 0."""
    return log if rank == 0 else log.with_name(f"{log.stem}-rank{rank}{log.suffix}")


def counts(threads: int) -> dict[str, str]:
    """The variables that say how many threads a process has: those that are recorded, because bits depend on them.
    What the user's environment says was taken into account."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def start_process(command: list[str], environment: dict[str, str], errors: BinaryIO) -> "subprocess.Popen[str]":
    """Starts a process in which signals wait until it is ready for them: one that came while it imports would end it
    without a word. Raises WorkerDied where the system cannot start another one."""
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
        raise WorkerDied(f"a worker could not be started: {error}; make room on the machine and try again") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _event(line: str) -> dict[str, Any] | None:
    """What a worker says in one line; None of what is no event, such as something that was printed before it ran."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def is_echo(event: Mapping[str, Any]) -> bool:
    """Whether a rank says no more than that another one is gone."""
    return event["event"] == "crashed" and GONE.search(event["error"]) is not None


@dataclass(slots=True)
class RankOutcomes:
    """What has become of the ranks in a stage: the events that say so, and the exit codes of those that are gone."""

    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    failed: dict[int, dict[str, Any]] = field(default_factory=dict)
    crashed: dict[int, dict[str, Any]] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)

    def take(self, heard: RankEvent) -> bool:
        """Takes up an event if it is one rank's last word."""
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
        """The ranks that ended without a word."""
        return [rank for rank in sorted(self.gone) if rank not in self.failed and rank not in self.crashed]

    @property
    def echoing(self) -> bool:
        """Whether all that was heard so far is that ranks miss another one: that it is gone may take long to show."""
        return not self.silent and all(map(is_echo, (*self.failed.values(), *self.crashed.values())))

    @property
    def stopping(self) -> bool:
        """Whether all that happened so far is that ranks stopped because they were asked to."""
        return not self.gone and all(event["kind"] == "Interrupted" for event in self.failed.values())

    def waiting(self, ranks: Iterable[int]) -> list[int]:
        """Those of the ranks that are still at work, or wait for another that is not."""
        return [r for r in ranks if not (r in self.done or r in self.failed or r in self.gone)]

    def cause(self) -> tuple[int, dict[str, Any] | None]:
        """The rank that ended the stage, and its message if it left one.

        A rank that ended without a word left none, but all others only tell of its absence; else it is the first that
        spoke of anything else.
        """
        if self.silent:
            return self.silent[0], None
        told = (*self.failed.items(), *self.crashed.items())
        return min(told, key=lambda item: (is_echo(item[1]), item[1]["when"]))


class Workers:
    """All ranks of a stage. `threads` are those of all of them together."""

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
        """The ranks that this process looks after; the first one speaks for all."""
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
        """What is heard next. Waits by the second: a signal that comes just before this process falls asleep does not
        wake it, and Python attends to signals only when it is awake."""
        while True:
            with suppress(queue.Empty):
                return self._heard.get(timeout=1.0)
            for worker in self.workers.values():
                if self._stopping:
                    worker.wake()
                if (code := worker.process.poll()) is not None:  # what it forked may hold its output open
                    return RankEvent(worker.rank, None, code)

    def _failure(self, fates: RankOutcomes, stage: str) -> dict[str, Any]:
        """The message of the rank that ended the stage; ends those that wait for it. Raises WorkerDied and Fault."""
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
                f"{worker} lost another rank, which left no word: {event['error']}. {saved}: run the same command again"
            )
        if event["event"] == "crashed":
            log = self.workers[rank].log
            raise Fault(
                f"{worker} stopped with a fault of togi's own: {event['error']}. The traceback is in {log}. {saved}"
            )
        same = [other for other in fates.failed.values() if other["message"] == event["message"]]
        return event if len(same) == len(self.workers) else {**event, "message": event["message"] + named}

    def stop(self) -> None:
        """Asks all ranks to save and stop. One that someone halted (SIGSTOP) goes on first: others wait for it."""
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
            if not listener.is_alive():  # else what the process forked holds its output open
                assert worker.process.stdout is not None
                worker.process.stdout.close()
        self._meeting.cleanup()


def clear_meetings(folder: Path) -> None:
    """Removes the places where ranks of runs met that were killed. No run may be at work in `folder`."""
    for place in folder.glob(f"{MEETING}*"):
        shutil.rmtree(place, ignore_errors=True)
