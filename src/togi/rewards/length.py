"""Gate: the answer is neither too short nor too long."""

from dataclasses import dataclass
from typing import Literal

from togi.rewards.base import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCheck:
    """Passes min <= length <= max, in characters of the trimmed answer or in sampled tokens, terminator included."""

    unit: Literal["chars", "tokens"] = "chars"
    min: int = 0
    max: int | None = None

    def __call__(self, attempt: Attempt) -> str | None:
        length = len(attempt.completion.token_ids) if self.unit == "tokens" else len(attempt.answer.strip())
        if length < self.min:
            return "too_short"
        return "too_long" if self.max is not None and length > self.max else None
