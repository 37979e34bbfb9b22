"""Does shards in several processes on this machine.

Each process gets a shard as a line on its standard input and answers with one line. If a process is killed during a
shard, a new one does the shard again; a second death on the same shard ends the stage.
"""

import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from togi.core.errors import ERRORS, RecordError, WorkerDied
from togi.stages.shards import ShardTask

COMMAND = (sys.executable, "-m", "togi.recipe.shard_worker")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
TRIES = 2  # processes that may die on one shard
AHEAD = 2  # shards per process that may be done in advance; their results wait in memory

Start = Callable[[], "subprocess.Popen[str]"]


def start_process() -> "subprocess.Popen[str]":
    """Starts a process that waits for shards. Raises WorkerDied if the system cannot start one."""
    try:
        return subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
            text=True,
            encoding="utf-8",
        )
    except OSError as error:
        raise WorkerDied(f"a process for shards could not be started: {error}; lower `workers`") from None


class PoolShards:
    """The `ShardExecutor` with `size` processes, which are started on first use; `close` ends them."""

    apart = True

    def __init__(self, size: int, start: Start = start_process) -> None:
        self.size = size
        self._start = start
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        self.processes: list[subprocess.Popen[str]] = []
        self._closed = False

    def values(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        """The values of the tasks, in their order."""
        size = min(self.size, len(tasks))
        for _ in range(size - self._idle.qsize()):
            self._add()
        if not size:
            return
        with ThreadPoolExecutor(size, thread_name_prefix="shards") as threads:
            waiting: deque[Future[dict[str, Any]]] = deque()
            try:
                for task in tasks:
                    waiting.append(threads.submit(self._value, task))
                    if len(waiting) > AHEAD * size:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for each in waiting:
                    each.cancel()

    def close(self) -> None:
        """Ends the processes."""
        self._closed = True
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()

    def _add(self) -> None:
        process = self._start()
        self.processes.append(process)
        self._idle.put(process)

    def _value(self, task: ShardTask) -> dict[str, Any]:
        """The value of one shard, computed by an idle process."""
        line = json.dumps(asdict(task)) + "\n"
        code = 0
        for _ in range(TRIES):
            process = self._idle.get()
            answer = _ask(process, line)
            if answer:
                self._idle.put(process)
                return unpacked(task, json.loads(answer))
            code = process.wait()
            if self._closed:
                break
            self._add()
        raise WorkerDied(
            f"stage {task.stage}: the process that did shard {task.number} {_end(code)}. It was tried twice. "
            "Everything finished is saved: run the same command again"
        )


def _ask(process: "subprocess.Popen[str]", line: str) -> str:
    """The process's answer; empty if it died."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    answer = process.stdout.readline()
    return answer if answer.endswith("\n") else ""


def _end(code: int) -> str:
    """How a process without an answer ended, in words."""
    if code < 0:
        return f"was killed (signal {-code}); if nobody killed it, the machine ran out of memory: lower `workers`"
    return f"ended with exit code {code}; the worker's log shows why"


def unpacked(task: ShardTask, answer: dict[str, Any], node: str = "") -> dict[str, Any]:
    """The value in an answer, from `node` if it came from another machine. Raises the error that it contains."""
    if "value" in answer:
        return answer["value"]
    where = f"stage {task.stage}, shard {task.number}{f', on {node}' if node else ''}"
    message = f"{where}: {answer['message']}"
    raise RecordError(message, answer["record"]) if "record" in answer else ERRORS[answer["kind"]](message)
