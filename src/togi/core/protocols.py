"""The narrow interfaces through which floors talk; each has a fake of a few lines in the tests."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from togi.core.errors import GraderError
from togi.core.records import Completion, Message, Prompt, SamplingParams


class Tokenizer(Protocol):
    """What togi uses of a fast tokenizer of the transformers library."""

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool = ...) -> Any: ...
    def decode(self, ids: Sequence[int], **kwargs: Any) -> str: ...


class Generator(Protocol):
    """Answers prompts: one list of `params.n` completions per prompt, in order."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[Completion]]: ...


class Scorer(Protocol):
    """Scores answers in a batch: higher is better. Each item is (prompt messages, answer text without terminator); one
    that cannot be scored has an error in the place of its score."""

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> Sequence[float | GraderError]: ...


class Embedder(Protocol):
    """Embeds texts: (len(texts), width) float32, rows of length 1."""

    def embed(self, texts: Sequence[str]) -> np.ndarray: ...


class Tracker(Protocol):
    """Shows the metrics of one stage somewhere; each step is told once, in order."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...
