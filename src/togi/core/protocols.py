"""The narrow interfaces between floors. The tests have a fake of a few lines for each."""

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

    `stream`: events carry text as it becomes certain. `end_ids` are tokens that end an answer as a stop string does.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seeds: tuple[int, ...]
    stream: bool = False
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """News of sample `index` of `request`: new text (streams only), and the completion once the sample has ended."""

    request: int
    index: int
    text: str = ""
    completion: Completion | None = None


class Engine(Protocol):
    """Answers requests of token ids, many at a time. Each request has its own queue of events, so two readers never
    take each other's events.

    `repeatable`: the same request under the same weights always gets the same answer.
    """

    repeatable: bool

    def add(self, request: Request) -> int:
        """Takes a request and returns its id; raises InputError if it can never be answered."""
        ...

    def events(self, request: int) -> Iterator[Event]:
        """The events of one request in order; waits for them, and ends with the request or when it is cancelled."""
        ...

    def cancel(self, request: int) -> None:
        """Drops a request. An unknown or finished request is no error."""
        ...

    def publish(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Uses these weights (names and whole tensors) from now on. Raises RuntimeError while requests run."""
        ...

    def close(self) -> None:
        """Drops all requests and frees all memory."""
        ...


class TextLogprobs(NamedTuple):
    """Of each token of a text but the first its log-probability in nats (temperature 1), and the likeliest tokens at
    its place with theirs."""

    logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]


class Completer(Protocol):
    """Continues plain texts: one list of `params.n` completions per text, in order, each from its own seed."""

    def complete(
        self, texts: Sequence[str], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]: ...


class Chooser(Protocol):
    """Says which of two words a model would rather begin its answer with: log p(yes) - log p(no) of each
    conversation, in nats. A conversation of which this cannot be told gets an error in place of it."""

    def margins(self, asked: Sequence[tuple[Message, ...]], yes: str, no: str) -> Sequence[float | GraderError]: ...


class Scorer(Protocol):
    """Scores answers in batches; higher is better. Each item is (prompt messages, answer text without terminator). An
    item that cannot be scored gets an error in place of its score."""

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> Sequence[float | GraderError]: ...


class Embedder(Protocol):
    """Embeds texts: (len(texts), width) float32, rows of length 1."""

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...


class Tracker(Protocol):
    """Shows the metrics of one stage somewhere. Each step is logged once, in order."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...
