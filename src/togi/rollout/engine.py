"""Requests for many prompts at once, and complete answers from an engine's stream of events."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from togi.core.errors import InputError
from togi.core.protocols import Engine, Request
from togi.core.records import Completion, SamplingParams


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


def requests_of(
    prompt_ids: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[Sequence[int]], batch_rows: int
) -> list[tuple[int, Request]]:
    """One request per prompt, with the number of the prompt, or several if it has more samples than a batch has rows.

    Raises InputError unless there is one seed per sample.
    """
    requests = []
    for at, (ids, own) in enumerate(zip(prompt_ids, seeds, strict=True)):
        if len(own) != params.n:
            raise InputError(f"prompt {at}: {len(own)} seeds for n = {params.n} samples; give one seed per sample")
        for start in range(0, params.n, batch_rows):
            part = tuple(own[start : start + batch_rows])
            part_params = params if len(part) == params.n else replace(params, n=len(part))
            requests.append((at, Request(prompt_ids=tuple(ids), params=part_params, seeds=part)))
    return requests


def batches(samples: Sequence[int], batch_rows: int) -> list[range]:
    """Splits prompts into consecutive batches of at most `batch_rows` rows; prompt i has `samples[i]` samples."""
    cuts, rows = [0], 0
    for at, count in enumerate(samples):
        if rows and rows + count > batch_rows:
            cuts.append(at)
            rows = 0
        rows += count
    return [range(start, stop) for start, stop in pairwise([*cuts, len(samples)]) if stop > start]
