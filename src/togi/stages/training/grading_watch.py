"""Watches users' reward functions: reports a slow call, and ends a stage that is to stop while one hangs.

The watch is a thread. It cannot tell of a function that keeps Python's lock, as a long call into C may.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from togi.core.errors import Interrupted
from togi.rewards.calls import Call, Calls
from togi.stages.context import Context

SLOW = 60.0  # seconds of a call after which it is reported; then at twice the time, and so on
RARELY = 3600.0  # seconds at most until the next line about one call
PATIENCE = 15.0  # seconds that a call may take after a request to stop
TICK = 0.5  # seconds between two looks


class GradingWatch:
    """Watches the running one of `calls` while a block grades."""

    def __init__(self, calls: Calls, context: Context) -> None:
        self.calls = calls
        self.context = context
        self._next = SLOW
        self._stop_seen: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches during the block."""
        ended = Event()
        thread = Thread(target=self._watch, args=(ended,), name="grading watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, ended: Event) -> None:
        while not ended.wait(TICK):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Tells of the running call if it is time, and gives up if it exceeds the patience after a request to stop.
        `now` is on the monotonic clock, in seconds."""
        call, stop = self.calls.current, self.context.control.stop
        if stop and self._stop_seen is None:
            self._stop_seen = now
        if call is None:
            return
        if now - call.start >= self._next:
            self._tell(call, now - call.start)
        if self._stop_seen is not None and now - max(call.start, self._stop_seen) >= PATIENCE:
            self._give_up(call)

    def _tell(self, call: Call, seconds: float) -> None:
        """Raises an alarm the first time in a stage, later only logs."""
        done, where = call.missing
        what = f"reward function {call.function} has not {done} for {seconds:.0f} seconds{where}"
        if self._next == SLOW:
            limit = f"its deadline is {call.deadline:g} seconds" if call.deadline else _ADVICE[done]
            self.context.alarm("slow_reward_function", f"{what}; {limit}", value=seconds, threshold=SLOW)
        else:
            self.context.log(what)
        self._next += min(self._next, RARELY)

    def _give_up(self, call: Call) -> None:
        done, where = call.missing
        self.context.control.give_up(
            Interrupted(
                f"stage {self.context.name}: stopped while reward function {call.function} had not {done}{where}, "
                f"{PATIENCE:g} seconds after the request to stop; the samples of this batch are not stored, everything "
                "finished is saved"
            )
        )


_ADVICE = {
    "returned": "the run waits for it; with a `deadline` in seconds, such an answer would count as a failure",
    "loaded": "the run waits for the code at the top of its file; with a `deadline` in seconds, the run would end",
}
