"""The example of a training on fixed data: its sequences, and the numbers that go with them."""

from dataclasses import dataclass
from typing import Any

from togi.model.forest import Sequence as TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A unit that is never split: one tree of sequences (one for a chat, two for a pair) and the numbers that go with
    it.

    Examples with an equal `prompt` must stay on one side of a split. `ref_logp` are the log-probabilities (nats) of the
    sequences under the initial model, each summed over its scored tokens.
    """

    id: str
    prompt: Any
    group: tuple[TokenSequence, ...]
    margin: float | None = None
    ref_logp: tuple[float, ...] | None = None
