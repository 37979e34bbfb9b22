"""Models on servers with the same protocols as models in this process, so that stages need not know where a model is.

A server renders conversations itself and its answers contain no terminator; one is appended to each answer that the
model ended, so that local and remote answers read alike. A request that failed permanently gives a completion with stop
`error` and empty text, or a `GraderError` instead of a score.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from togi.client.answers import Answer, Choice, Failure, Scores, Vectors, Whole
from togi.client.requests import AnyRequest, ChatRequest, CompletionRequest, EmbedRequest, ScoreRequest
from togi.core.errors import GraderError, InputError, StageError
from togi.core.protocols import Tokenizer
from togi.core.records import Completion, Message, Prompt, SamplingParams
from togi.core.seeds import derive
from togi.text.render import render_text
from togi.text.template import Template

END = "<|end_of_answer|>"
"""The terminator appended to an answer that the model ended, if the recipe names no template."""

LIKELIEST = 20
"""The number of first tokens that a chooser asks for: the most that servers give."""

ITEMS = 64
"""The most conversations in one request for scores."""

REFUSALS = ("refused", "filtered", "too_long")
"""Failures caused by the request itself: repeating it would not help."""

SEEDS = 2**31
"""Servers accept signed 32-bit seeds."""


class Asker(Protocol):
    """A client of a server: yields answers in the order of the requests, a `Failure` for a request that failed
    permanently."""

    name: str

    def ask(self, requests: Iterable[AnyRequest]) -> Iterator[Whole | Failure]: ...


def seed_of(params: SamplingParams, *parts: Any) -> int | None:
    """The seed that a server gets: none for a greedy answer, which does not depend on it."""
    return None if params.temperature == 0 else derive(*parts) % SEEDS


def sent(params: SamplingParams) -> SamplingParams:
    """The parameters that a server gets: only one greedy answer, because they are all equal and vLLM refuses more."""
    return replace(params, n=1) if params.temperature == 0 else params


@dataclass(frozen=True, slots=True)
class RemoteGenerator:
    """Answers prompts on a server. Equal conversations of different prompts have different seeds. Greedy requests have
    no seed: `repeat` counts how often the same one was made before, and each time the server gets a new request."""

    asker: Asker
    terminator: str = END
    turn_starts: tuple[str, ...] = ()
    repeat: int = 0

    def fits(self, prompt: Prompt, params: SamplingParams) -> bool:
        """Always true: the server itself refuses a prompt that does not fit, and its answer fails."""
        return True

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """`params.n` completions for each prompt, in order; those of a failed request have stop `error`."""
        own, index = sent(params), self.repeat if params.temperature == 0 else 0
        requests = (
            ChatRequest(messages=prompt.messages, params=own, seed=seed_of(params, params.seed, prompt.id), index=index)
            for prompt in prompts
        )
        return [_completions(found, params.n, self.terminator) for found in self.asker.ask(requests)]


@dataclass(frozen=True, slots=True)
class RemoteCompleter:
    """Continues plain texts on a server. Appends no terminator to a text that the model ended."""

    asker: Asker

    def complete(
        self, texts: Sequence[str], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """`params.n` continuations of each text, in order; `seeds` select the random stream of each text."""
        asked = sent(params)
        requests = (
            CompletionRequest(prompt=text, params=asked, seed=seed_of(params, *own))
            for text, own in zip(texts, seeds, strict=True)
        )
        return [_completions(found, params.n, "") for found in self.asker.ask(requests)]


@dataclass(frozen=True, slots=True)
class RemoteChooser:
    """Compares two words as the beginning of a model's answer by its likeliest first tokens. A word that is not among
    them counts as the least likely of them, so the margin is then a bound."""

    asker: Asker

    def margins(self, asked: Sequence[tuple[Message, ...]], yes: str, no: str) -> list[float | GraderError]:
        """log p(yes) - log p(no) in nats for each conversation; an error if the request failed or the answer begins
        with neither."""
        params = SamplingParams(max_tokens=1, logprobs=LIKELIEST)
        requests = (ChatRequest(messages=messages, params=params) for messages in asked)
        return [self._margin(found, yes, no) for found in self.asker.ask(requests)]

    def _margin(self, found: Whole | Failure, yes: str, no: str) -> float | GraderError:
        if isinstance(found, Failure):
            return GraderError(f"model {self.asker.name}: {found.message}")
        assert isinstance(found, Answer)
        likeliest = found.choices[0].top[0] if found.choices[0].top else ()
        first, second = (_log_share(likeliest, word, other) for word, other in ((yes, no), (no, yes)))
        if first == second == -math.inf:
            said = ", ".join(repr(token) for token, _ in likeliest[:5])
            return GraderError(
                f"model {self.asker.name}: it would begin an answer neither with {yes!r} nor with {no!r}: its "
                f"likeliest first tokens are {said}; ask for a word that it would use, or use a method that reads its "
                "text"
            )
        least = min(logp for _, logp in likeliest)
        return max(first, least) - max(second, least)


def _log_share(likeliest: Sequence[tuple[str, float]], word: str, other: str) -> float:
    """Log of the total probability of tokens that begin `word` and not `other`; -inf if there are none."""
    found = [
        logp
        for token, logp in likeliest
        if (text := token.strip()) and word.startswith(text) and not other.startswith(text)
    ]
    return math.log(sum(map(math.exp, found))) if found else -math.inf


@dataclass(frozen=True, slots=True)
class RemoteScorer:
    """Scores on a server, as raw logits; a batch is one request, or several at once if it has more than ITEMS items. If
    the server is not togi's, `rendered` turns a conversation into the token ids that it scores."""

    asker: Asker
    rendered: Callable[[tuple[Message, ...]], tuple[int, ...]] | None = None

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[float | GraderError]:
        """Scores in the order of `items` (messages, answer without terminator)."""
        if not items:
            return []
        talks = [(*messages, Message("assistant", answer)) for messages, answer in items]
        read = [talk if self.rendered is None else self.rendered(talk) for talk in talks]
        parts = [read[at : at + ITEMS] for at in range(0, len(read), ITEMS)]
        answers = self.asker.ask([ScoreRequest(items=tuple(part)) for part in parts])
        return [score for part, found in zip(parts, answers, strict=True) for score in self._scores(found, len(part))]

    def _scores(self, found: Whole | Failure, count: int) -> list[float | GraderError]:
        if isinstance(found, Failure):
            return [GraderError(f"model {self.asker.name}: {found.message}")] * count
        assert isinstance(found, Scores)
        return [
            GraderError(f"model {self.asker.name}: {each}") if isinstance(each, str) else each for each in found.scores
        ]


def rendering(template: Template, tokenizer: Tokenizer) -> Callable[[tuple[Message, ...]], tuple[int, ...]]:
    """A function that renders conversations as the ids that a scorer reads."""
    return lambda messages: tuple(render_text(template, tokenizer, messages))


@dataclass(frozen=True, slots=True)
class RemoteEmbedder:
    """Embeds texts on a server, `batch` texts per request; `prefix` is put before every text."""

    asker: Asker
    prefix: str = ""
    batch: int = 64

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns (len(texts), width) float32, rows of length 1. Raises StageError if a request failed."""
        own = [f"{self.prefix}{text}" for text in texts]
        requests = (EmbedRequest(texts=tuple(own[at : at + self.batch])) for at in range(0, len(own), self.batch))
        rows = [self._rows(found) for found in self.asker.ask(requests)]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    def _rows(self, found: Whole | Failure) -> np.ndarray:
        vectors = whole(self.asker, found)
        assert isinstance(vectors, Vectors)
        lengths = np.linalg.norm(vectors.rows, axis=1, keepdims=True)
        if not lengths.all():
            raise InputError(f"model {self.asker.name}: the embedding of a text is all zeros: this is not an embedder")
        return vectors.rows / lengths


def whole(asker: Asker, found: Whole | Failure) -> Whole:
    """The answer to a request that the stage needs. Raises StageError for a failure."""
    if isinstance(found, Failure):
        raise StageError(
            f"model {asker.name}: a request got no answer: {found.message}. All received answers are kept: run the "
            "same command again"
        )
    return found


def _completions(found: Whole | Failure, count: int, terminator: str) -> list[Completion]:
    if isinstance(found, Failure):
        return [Completion(text="", stop="error", refused=found.reason in REFUSALS)] * count
    assert isinstance(found, Answer)
    made = [_completion(choice, terminator) for choice in found.choices]
    return made if len(made) == count else made * count  # one greedy answer is used for all


def _completion(choice: Choice, terminator: str) -> Completion:
    """A completion from a server's answer, with the terminator appended if the model ended it, as in a local one."""
    kept: dict[str, Any] = {"token_ids": choice.token_ids, "logprobs": choice.logprobs}
    if choice.finish == "stop" and terminator:
        return Completion(text=choice.text + terminator, stop="terminator", **kept)
    return Completion(text=choice.text, stop="length" if choice.finish == "length" else "stop_string", **kept)
