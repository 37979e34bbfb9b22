"""What every engine's caller needs: whole answers out of a stream of events."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from togi.core.protocols import Engine, Request
from togi.core.records import Completion


def answer(engine: Engine, requests: Sequence[Request]) -> Iterator[list[Completion]]:
    """The completions of each request, in the order of the requests, each as soon as it and those before it are whole.

    All requests are added before this returns, so an engine that works by itself begins at once, and the later ones go
    on while the caller works on an earlier one. Left early, the rest is cancelled.
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
    """Which prompts are computed together if prompt i has `samples[i]` samples: in order, at most `batch_rows` rows."""
    cuts, rows = [0], 0
    for at, count in enumerate(samples):
        if rows and rows + count > batch_rows:
            cuts.append(at)
            rows = 0
        rows += count
    return [range(start, stop) for start, stop in pairwise([*cuts, len(samples)]) if stop > start]
