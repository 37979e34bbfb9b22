"""Term: a user's own function in a process of its own, which can be killed when a call takes too long.

A thread could not be: nothing ends a thread that computes in C or catches every exception. The process loads the file
once and does one call after the other in its main thread, so the function may use SIGALRM. After a call that took too
long, a new process loads the file again: whatever the function kept in memory is gone. Loading has a deadline, too.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from togi.core.codec import from_row, to_row
from togi.core.errors import GraderError, InputError, StageError
from togi.core.records import Sample
from togi.rewards.base import Attempt, Grade
from togi.rewards.calls import Calls
from togi.rewards.columns import Columns

COMMAND = (sys.executable, "-m", "togi.rewards.apart_process")  # then file, function, style, deadlines, columns
GRACE = 5.0  # seconds after the deadline in which the process should have ended itself
LOADING = 60.0  # seconds in which a file must load, if its deadline is not longer


@dataclass(slots=True, kw_only=True)
class ApartGrader:
    """Calls a function as `FunctionGrader` and `TrlGrader` do, but in its own process and for at most `deadline`
    seconds a call. A call that does not return in time is a failure of its answers, and so is one whose process dies.

    Raises InputError if the file does not load within `loading` seconds, or `deadline` if that is longer, and as
    `load_grader` for `columns`. `close` ends the process.
    """

    file: Path
    name: str
    style: str
    deadline: float
    calls: Calls = field(default_factory=Calls)
    loading: float = LOADING
    columns: Sequence[Columns] = ()
    _process: "subprocess.Popen[str] | None" = None

    def __post_init__(self) -> None:
        self.loading = max(self.loading, self.deadline)
        with self.calls.during(f"{self.name} of {self.file.name}", (), self.loading):
            self._process = self._started()

    def __call__(self, attempts: Sequence[Attempt]) -> list[Grade]:
        calls = [[attempt] for attempt in attempts] if self.style == "togi" else [list(attempts)]
        return [grade for each in calls for grade in self._grades(each)]

    def close(self) -> None:
        """Ends the process, and those that it started."""
        process, self._process = self._process, None
        if process is not None:
            _killed(process)

    def _grades(self, attempts: Sequence[Attempt]) -> list[Grade]:
        """The grades of one call."""
        with self.calls.during(f"{self.name} of {self.file.name}", attempts, self.deadline):
            self._process = self._process or self._started()
            answer = self._answer(self._process, json.dumps([packed(attempt) for attempt in attempts]))
        if isinstance(answer, str):
            return [GraderError(f"{answer} (prompt {attempt.prompt.id})") for attempt in attempts]
        return [GraderError(grade) if isinstance(grade, str) else grade for grade in answer]

    def _answer(self, process: "subprocess.Popen[str]", line: str) -> list[float | str | None] | str:
        """The grades, with errors as texts, or how the call failed."""
        start = time.monotonic()
        answer = _asked(process, line, self.deadline + GRACE)
        if answer:
            found: list[float | str | None] = json.loads(answer)
            return found
        late = time.monotonic() - start >= self.deadline
        self._process = None
        code = _killed(process)
        if late:
            return f"it did not return within its deadline of {self.deadline:g} seconds"
        return f"its process {f'was killed by signal {-code}' if code < 0 else f'ended with exit code {code}'}"

    def _started(self) -> "subprocess.Popen[str]":
        """A process that has loaded the file."""
        more = (str(self.deadline), str(self.loading), json.dumps([asdict(rows) for rows in self.columns]))
        start = time.monotonic()
        process = _start([*COMMAND, str(self.file.resolve()), self.name, self.style, *more])
        line = _line(process, self.loading + GRACE)
        if not line:
            late, code = time.monotonic() - start >= self.loading, _killed(process)
            if late:
                raise InputError(
                    f"reward function: {self.file} did not load within {self.loading:g} seconds; do slow work in the "
                    f"function and not at the top of the file, or set `deadline` to more than {self.loading:g}"
                )
            raise InputError(f"reward function: the process of {self.file} ended with exit code {code}")
        error = json.loads(line)
        if error is not None:
            _killed(process)
            raise InputError(error)
        return process


def check_function(
    file: Path,
    name: str,
    style: str,
    deadline: float | None,
    loading: float = LOADING,
    columns: Sequence[Columns] = (),
) -> None:
    """Loads a function in a process of its own, and ends it. Raises InputError as ApartGrader does."""
    seconds = deadline or loading
    ApartGrader(file=file, name=name, style=style, deadline=seconds, loading=loading, columns=columns).close()


def _start(command: Sequence[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that processes that the function starts end with it
        )
    except OSError as error:
        raise StageError(f"the process of a reward function could not be started: {error}") from None


def _asked(process: "subprocess.Popen[str]", line: str, seconds: float) -> str:
    """The process's answer to one line; empty if it died, or gave none within `seconds`."""
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return _line(process, seconds)


def _line(process: "subprocess.Popen[str]", seconds: float) -> str:
    """The process's next line; empty if it died, or wrote none within `seconds`."""
    assert process.stdout is not None
    ready = select.poll()
    ready.register(process.stdout, select.POLLIN)
    answer = process.stdout.readline() if ready.poll(1000 * seconds) else ""
    return answer if answer.endswith("\n") else ""


def _killed(process: "subprocess.Popen[str]") -> int:
    """Ends a process and its own processes; returns its exit code. If it had ended itself, this is how."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):
            assert pipe is not None
            pipe.close()
    return code


def packed(attempt: Attempt) -> dict[str, Any]:
    """An answer as plain values."""
    sample = Sample(id=attempt.prompt.id, prompt=attempt.prompt, completion=attempt.completion)
    return {"sample": to_row(sample), "answer": attempt.answer}


def unpacked(row: dict[str, Any]) -> Attempt:
    """The answer that `packed` was given."""
    sample = from_row("samples", row["sample"])
    assert isinstance(sample, Sample)
    return Attempt(prompt=sample.prompt, completion=sample.completion, answer=row["answer"])
