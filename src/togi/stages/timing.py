"""Measures how long the phases of a step take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(times: dict[str, float], phase: str) -> Iterator[None]:
    """Adds the seconds of the block to `times[phase]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        times[phase] = times.get(phase, 0.0) + time.perf_counter() - start
