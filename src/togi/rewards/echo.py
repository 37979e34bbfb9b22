"""Gate: the answer does not repeat the question or the system turn, a shortcut that policies learn quickly."""

from dataclasses import dataclass

from togi.rewards.base import Attempt
from togi.text.compare import shingles


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoCheck:
    """Passes an answer if at most `max_share` of its character n-grams occur in the prompt's system and user turns.

    Case, spacing and punctuation are ignored. An answer shorter than one n-gram passes unless the prompt contains it.
    Turns of other roles (documents, earlier answers) may be repeated.
    """

    size: int = 6
    max_share: float = 0.6

    def __call__(self, attempt: Attempt) -> str | None:
        answer = shingles(attempt.answer, self.size)
        turns = [m.content for m in attempt.prompt.messages if m.role in ("system", "user")]
        asked = frozenset[str]().union(*(shingles(turn, self.size) for turn in turns))
        shared = sum(gram in asked for gram in answer)
        return "says_the_prompt" if answer and shared > self.max_share * len(answer) else None
