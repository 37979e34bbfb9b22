"""The running call of a user's function, or the loading of its file, for those who watch how long it takes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from togi.rewards.base import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that has not returned, or a file that is being loaded. `prompt` is the id of the prompt whose answers the
    call grades, empty for a file; `start` is on the monotonic clock, in seconds; `deadline` is the function's, in
    seconds."""

    function: str
    prompt: str
    start: float
    deadline: float | None = None

    @property
    def missing(self) -> tuple[str, str]:
        """What the function has not done, and for which prompt, in words."""
        return ("returned", f" (prompt {self.prompt})") if self.prompt else ("loaded", "")


class Calls:
    """The running call; None between calls. One thread grades, any may read."""

    def __init__(self) -> None:
        self.current: Call | None = None

    @contextmanager
    def during(self, function: str, attempts: Sequence[Attempt], deadline: float | None = None) -> Iterator[None]:
        """The block is a call of `function` with answers to one prompt; without answers, it loads the function."""
        prompt = attempts[0].prompt.id if attempts else ""
        self.current = Call(function=function, prompt=prompt, start=time.monotonic(), deadline=deadline)
        try:
            yield
        finally:
            self.current = None
