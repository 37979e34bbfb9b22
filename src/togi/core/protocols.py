"""The narrow interfaces between layers. The tests have a fake of a few lines for each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from togi.core.errors import GraderError
from togi.core.records import Completion, Message, Prompt, SamplingParams


class Tokenizer(Protocol):
    """The part of the transformers library's fast tokenizers that togi uses."""

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool = ...) -> Any: ...
    def decode(self, ids: Sequence[int], **kwargs: Any) -> str: ...


class Generator(Protocol):
    """Answers prompts: one list of `params.n` completions per prompt, in order."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt for an engine to answer `params.n` times, sample i from the random stream `seeds[i]`.

    `stream`: events contain text as soon as it is final. `end_ids` are tokens that end an answer as a stop string does.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seeds: tuple[int, ...]
    stream: bool = False
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """An update on sample `index` of `request`: new text (streams only), and the completion when the sample ends."""

    request: int
    index: int
    text: str = ""
    completion: Completion | None = None


class Engine(Protocol):
    """Answers requests of token ids, many at a time. Each request has its own queue of events, so two readers never
    take each other's events.

    `repeatable`: the same request with the same weights always gets the same answer.
    """

    repeatable: bool

    def add(self, request: Request) -> int:
        """Takes a request and returns its id; raises InputError if it can never be answered."""
        ...

    def events(self, request: int) -> Iterator[Event]:
        """Yields the events of one request in order, waiting for them; ends when the request ends or is cancelled."""
        ...

    def cancel(self, request: int) -> None:
        """Drops a request. An unknown or finished request is no error."""
        ...

    def publish(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Replaces the weights (names and whole tensors). Raises RuntimeError while requests run."""
        ...

    def close(self) -> None:
        """Drops all requests and frees all memory."""
        ...


class TextLogprobs(NamedTuple):
    """For each token of a text except the first: its log-probability in nats (temperature 1), and the likeliest tokens
    at that position with theirs."""

    logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]


class Completer(Protocol):
    """Continues plain texts: one list of `params.n` completions per text, in order, each from its own seed."""

    def complete(
        self, texts: Sequence[str], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]: ...


class Chooser(Protocol):
    """Compares two words as the beginning of a model's answer: log p(yes) - log p(no) for each conversation, in nats.
    A conversation that gives no such margin gets an error instead."""

    def margins(self, asked: Sequence[tuple[Message, ...]], yes: str, no: str) -> Sequence[float | GraderError]: ...


class Scorer(Protocol):
    """Scores answers in batches; higher is better. Each item is (prompt messages, answer text without terminator). An
    item that cannot be scored gets an error instead of a score."""

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> Sequence[float | GraderError]: ...


class Embedder(Protocol):
    """Embeds texts: (len(texts), width) float32, rows of length 1."""

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...


class Tracker(Protocol):
    """Sends the metrics of one stage to a tracking tool. Each step is logged once, in order."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...
