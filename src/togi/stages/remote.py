"""Models on servers behind the protocols of models in this process: stages do not notice where a model is.

A server renders conversations itself and its answers hold no terminator; one is put behind each answer that the model
ended, so that what reads a local answer reads a remote one. A request that failed for good is a completion with stop
`error` and empty text, or a `GraderError` in the place of a score.
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
"""Stands behind an answer that the model ended, where the recipe names no template."""

LIKELIEST = 20
"""First tokens that a chooser asks for: the most that servers give."""

ITEMS = 64
"""Conversations of one request for scores."""

REFUSALS = ("refused", "filtered", "too_long")
"""Failures that belong to what was asked: asking again would not help."""

SEEDS = 2**31
"""Servers take seeds of 32 bits with a sign."""


class Asker(Protocol):
    """What asks a server: answers in the order of the requests; what failed for good has a `Failure`."""

    name: str

    def ask(self, requests: Iterable[AnyRequest]) -> Iterator[Whole | Failure]: ...


def seed_of(params: SamplingParams, *parts: Any) -> int | None:
    """The seed that a server is sent: none for a greedy answer, which is one answer whoever asks."""
    return None if params.temperature == 0 else derive(*parts) % SEEDS


def sent(params: SamplingParams) -> SamplingParams:
    """What is asked of a server: of greedy answers, which are all alike, a single one. vLLM refuses more."""
    return replace(params, n=1) if params.temperature == 0 else params


@dataclass(frozen=True, slots=True)
class RemoteGenerator:
    """Answers prompts on a server. Equal conversations of different prompts have seeds of their own. Greedy requests
    have no seed: `repeat` counts how often the same one was put before, and each time the server is asked anew."""

    asker: Asker
    terminator: str = END
    turn_starts: tuple[str, ...] = ()
    repeat: int = 0

    def fits(self, prompt: Prompt, params: SamplingParams) -> bool:
        """The server says what does not fit, and its answer has failed."""
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
    """Continues plain texts on a server. No terminator stands behind a text that the model ended."""

    asker: Asker

    def complete(
        self, texts: Sequence[str], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """`params.n` continuations of each text, in order; `seeds` name the random stream of each text."""
        asked = sent(params)
        requests = (
            CompletionRequest(prompt=text, params=asked, seed=seed_of(params, *own))
            for text, own in zip(texts, seeds, strict=True)
        )
        return [_completions(found, params.n, "") for found in self.asker.ask(requests)]


@dataclass(frozen=True, slots=True)
class RemoteChooser:
    """Reads which of two words a model would begin its answer with among its likeliest first tokens. A word that is not
    among them counts as the least likely of them, so the margin is a bound there."""

    asker: Asker

    def margins(self, asked: Sequence[tuple[Message, ...]], yes: str, no: str) -> list[float | GraderError]:
        """log p(yes) - log p(no) in nats for each conversation; an error where the request failed or the answer begins
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
                f"likeliest first tokens are {said}; ask for a word that it would say, or use a method that reads its "
                "text"
            )
        least = min(logp for _, logp in likeliest)
        return max(first, least) - max(second, least)


def _log_share(likeliest: Sequence[tuple[str, float]], word: str, other: str) -> float:
    """Log of the share of the tokens that begin `word` and not `other`; -inf where none does."""
    found = [
        logp
        for token, logp in likeliest
        if (text := token.strip()) and word.startswith(text) and not other.startswith(text)
    ]
    return math.log(sum(map(math.exp, found))) if found else -math.inf


@dataclass(frozen=True, slots=True)
class RemoteScorer:
    """Scores on a server, raw logits; a batch is one request, and more than ITEMS are several at once. Where the server
    is not togi's, `rendered` writes a conversation as the token ids that it scores."""

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
    """Writes conversations as the ids that a scorer reads."""
    return lambda messages: tuple(render_text(template, tokenizer, messages))


@dataclass(frozen=True, slots=True)
class RemoteEmbedder:
    """Embeds texts on a server, `batch` of them in a request; `prefix` is put before every text."""

    asker: Asker
    prefix: str = ""
    batch: int = 64

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), width) float32, rows of length 1. Raises StageError where a request failed."""
        own = [f"{self.prefix}{text}" for text in texts]
        requests = (EmbedRequest(texts=tuple(own[at : at + self.batch])) for at in range(0, len(own), self.batch))
        rows = [self._rows(found) for found in self.asker.ask(requests)]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    def _rows(self, found: Whole | Failure) -> np.ndarray:
        vectors = whole(self.asker, found)
        assert isinstance(vectors, Vectors)
        lengths = np.linalg.norm(vectors.rows, axis=1, keepdims=True)
        if not lengths.all():
            raise InputError(f"model {self.asker.name}: the embedding of a text is all zeros; it is no embedder")
        return vectors.rows / lengths


def whole(asker: Asker, found: Whole | Failure) -> Whole:
    """An answer that the stage cannot do without. Raises StageError for a failure."""
    if isinstance(found, Failure):
        raise StageError(
            f"model {asker.name}: a request got no answer: {found.message}. All answers that came are kept: run the "
            "same command again"
        )
    return found


def _completions(found: Whole | Failure, count: int, terminator: str) -> list[Completion]:
    if isinstance(found, Failure):
        return [Completion(text="", stop="error", refused=found.reason in REFUSALS)] * count
    assert isinstance(found, Answer)
    made = [_completion(choice, terminator) for choice in found.choices]
    return made if len(made) == count else made * count  # one greedy answer stands for all


def _completion(choice: Choice, terminator: str) -> Completion:
    """Text that the model ended has the terminator behind it, as a local answer has."""
    kept: dict[str, Any] = {"token_ids": choice.token_ids, "logprobs": choice.logprobs}
    if choice.finish == "stop" and terminator:
        return Completion(text=choice.text + terminator, stop="terminator", **kept)
    return Completion(text=choice.text, stop="length" if choice.finish == "length" else "stop_string", **kept)
