"""Gate: the answer does not say the question again, which a reward model may well like."""

from dataclasses import dataclass

from togi.rewards.base import Attempt
from togi.text.compare import shingles


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoCheck:
    """Passes answers of whose character n-grams at most `max_share` stand in the last user message; case, spacing and
    punctuation do not count. An answer shorter than one n-gram passes unless all of it stands there."""

    size: int = 6
    max_share: float = 0.6

    def __call__(self, attempt: Attempt) -> str | None:
        answer = shingles(attempt.answer, self.size)
        asked = shingles(attempt.prompt.text, self.size)
        shared = sum(gram in asked for gram in answer)
        return "says_the_question" if answer and shared > self.max_share * len(answer) else None
