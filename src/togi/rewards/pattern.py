"""Gate: the answer does not match a regular expression, for habits that can be written down."""

import re
from dataclasses import dataclass

from togi.rewards.base import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternCheck:
    """Passes answers that `forbidden` does not match anywhere."""

    forbidden: re.Pattern[str]

    def __call__(self, attempt: Attempt) -> str | None:
        return "forbidden_pattern" if self.forbidden.search(attempt.answer.strip()) else None
