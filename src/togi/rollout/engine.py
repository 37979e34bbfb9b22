"""Collects complete answers from an engine's stream of events."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from togi.core.protocols import Engine, Request
from togi.core.records import Completion


def answer(engine: Engine, requests: Sequence[Request]) -> Iterator[list[Completion]]:
    """Yields the completions of each request, in order, as soon as it and those before it are complete.

    All requests are added before this returns, so an engine that works by itself starts at once, and continues with
    later requests while the caller handles an earlier one. Closing the iterator early cancels the rest.
    """
    return _answers(engine, [engine.add(request) for request in requests], requests)


def _answers(engine: Engine, names: Sequence[int], requests: Sequence[Request]) -> Iterator[list[Completion]]:
    try:
        for name, request in zip(names, requests, strict=True):
            yield _completions(engine, name, request.params.n)
    finally:
        for name in names:
            engine.cancel(name)


def _completions(engine: Engine, request: int, count: int) -> list[Completion]:
    found = {event.index: event.completion for event in engine.events(request) if event.completion is not None}
    return [found[index] for index in range(count)]


def batches(samples: Sequence[int], batch_rows: int) -> list[range]:
    """Splits prompts into consecutive batches of at most `batch_rows` rows; prompt i has `samples[i]` samples."""
    cuts, rows = [0], 0
    for at, count in enumerate(samples):
        if rows and rows + count > batch_rows:
            cuts.append(at)
            rows = 0
        rows += count
    return [range(start, stop) for start, stop in pairwise([*cuts, len(samples)]) if stop > start]
