"""Runs a user's function, and says where in the user's files an exception arose."""

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from togi.core.errors import TogiError
from togi.core.strangers import run_stranger
from togi.rewards.neighbours import Neighbours

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blame:
    """Runs the code of a user's file and of the files beside it. `told` are the places whose traceback went to standard
    error, which is worker.log in a run: each place once."""

    beside: Neighbours
    told: set[str] = field(default_factory=set)

    def run(self, call: Callable[[], T], error: type[TogiError], where: str = "", *, trace: bool = True) -> T:
        """As `run_stranger`, with file and line of the innermost frame that is the user's, if there is one. With
        `trace`, the user's part of the traceback goes to standard error."""
        try:
            return run_stranger(call, error, where)
        except error as found:
            raised = found.__cause__
            place, frames = ("", None) if raised is None else self._place(raised)
            if raised is None or not place:
                raise
            if trace and place not in self.told:
                self.told.add(place)
                traceback.print_exception(type(raised), raised, frames, file=sys.stderr)
            raise error(f"{found}, at {place}") from raised

    def _place(self, raised: BaseException) -> tuple[str, TracebackType | None]:
        """File and line of the innermost frame in the user's files, and the traceback from the outermost one on."""
        files = {str(path) for path in (self.beside.file, *self.beside.known)}
        place, first, frame = "", None, raised.__traceback__
        while frame is not None:
            if (file := frame.tb_frame.f_code.co_filename) in files:
                place, first = f"{file}:{frame.tb_lineno}", first or frame
            frame = frame.tb_next
        return place, first
