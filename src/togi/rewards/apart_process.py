"""The process of a reward function with a deadline: loads the file, then does one call per line of standard input.

Each line is a list of answers, and the answer to it a list of their grades: numbers, nulls, and errors as texts. The
first line that it writes is null, or the error that kept the file from loading. A call, or loading, that exceeds its
deadline ends the process, even if it holds Python's lock, after its stack has gone to standard error. If the parent
ends, the process ends too, at the latest at the deadline. What the function prints goes to standard error.
"""

import faulthandler
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from togi.core.errors import GraderError, InputError
from togi.core.process import ignore_signals
from togi.rewards.apart import unpacked
from togi.rewards.base import Grade, Grader
from togi.rewards.columns import Columns
from togi.rewards.function import load_grader


def main() -> None:
    """Grades until standard input closes."""
    ignore_signals()  # signals to all processes of a run are meant for the run; ending a call would count as a failure
    file, name, style, deadline, loading, columns = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    faulthandler.dump_traceback_later(float(loading), exit=True)
    try:
        grader = load_grader(Path(file), name, style, columns=_columns(columns))
    except InputError as error:
        answers.write(json.dumps(str(error)) + "\n")
        return
    faulthandler.cancel_dump_traceback_later()
    answers.write("null\n")
    for line in orders:
        if not line.endswith("\n"):
            break  # the parent died in the middle of a line
        answers.write(json.dumps([_plain(grade) for grade in _graded(grader, line, float(deadline))]) + "\n")


def _columns(text: str) -> list[Columns]:
    return [Columns(**rows | {"names": tuple(rows["names"])}) for rows in json.loads(text)]


def _graded(grader: Grader, line: str, deadline: float) -> Sequence[Grade]:
    attempts = [unpacked(row) for row in json.loads(line)]
    faulthandler.dump_traceback_later(deadline, exit=True)
    grades = grader(attempts)
    faulthandler.cancel_dump_traceback_later()
    return grades


def _plain(grade: Grade) -> float | str | None:
    return str(grade) if isinstance(grade, GraderError) else grade


if __name__ == "__main__":
    main()
