"""Term: the soft length penalty of DAPO (arXiv 2503.14476), from 0 to -1 over a range of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.errors import GraderError
from togi.rewards.base import Attempt, Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongGrader:
    """0 up to max_tokens - cache_tokens sampled tokens, then linear down to -1 at max_tokens, and -1 beyond.

    An answer without token ids has no length, so its grading fails.
    """

    max_tokens: int
    cache_tokens: int
    name: str

    def __call__(self, attempts: Sequence[Attempt]) -> list[Grade]:
        return [self._grade(attempt) for attempt in attempts]

    def _grade(self, attempt: Attempt) -> Grade:
        length = len(attempt.completion.token_ids)
        if not length:
            return GraderError(f"{self.name}: prompt {attempt.prompt.id}: the answer has no token ids to count")
        free = self.max_tokens - self.cache_tokens
        return max(min(free - length, 0) / self.cache_tokens, -1.0)
