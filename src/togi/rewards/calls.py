"""The call of a user's function that is running, for those who watch how long it takes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from togi.rewards.base import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that has not returned. `prompt` is the id of the prompt whose answers it grades; `start` is on the
    monotonic clock, in seconds; `deadline` is the function's, in seconds."""

    function: str
    prompt: str
    start: float
    deadline: float | None = None


class Calls:
    """The running call; None between calls. One thread grades, any may read."""

    def __init__(self) -> None:
        self.current: Call | None = None

    @contextmanager
    def during(self, function: str, attempts: Sequence[Attempt], deadline: float | None = None) -> Iterator[None]:
        """The block is a call of `function` with answers to one prompt."""
        prompt = attempts[0].prompt.id
        self.current = Call(function=function, prompt=prompt, start=time.monotonic(), deadline=deadline)
        try:
            yield
        finally:
            self.current = None
