"""What a training learns from, one at a time."""

from dataclasses import dataclass
from typing import Any

from togi.model.forest import Sequence as TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What is never cut: one tree of sequences (a chat has one, a pair two), and the numbers that go with it.

    `prompt` tells which examples must stay on one side of a split. `ref_logp` are the log-probabilities (nats) of the
    sequences under the initial model, each summed over its scored tokens.
    """

    id: str
    prompt: Any
    group: tuple[TokenSequence, ...]
    margin: float | None = None
    ref_logp: tuple[float, ...] | None = None
