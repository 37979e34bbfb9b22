"""Gate: the answer does not say the question or the system turn again, which a policy finds out soon."""

from dataclasses import dataclass

from togi.rewards.base import Attempt
from togi.text.compare import shingles


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoCheck:
    """Passes answers of whose character n-grams at most `max_share` stand in the prompt's system and user turns; case,
    spacing and punctuation do not count. An answer shorter than one n-gram passes unless all of it stands there.

    Turns of other roles (documents, earlier answers) may be said again.
    """

    size: int = 6
    max_share: float = 0.6

    def __call__(self, attempt: Attempt) -> str | None:
        answer = shingles(attempt.answer, self.size)
        turns = [m.content for m in attempt.prompt.messages if m.role in ("system", "user")]
        asked = frozenset[str]().union(*(shingles(turn, self.size) for turn in turns))
        shared = sum(gram in asked for gram in answer)
        return "says_the_prompt" if answer and shared > self.max_share * len(answer) else None
