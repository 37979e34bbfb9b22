"""Gate: the answer is written in an allowed language. The caller passes in the detector, because it loads a model."""

from collections.abc import Callable
from dataclasses import dataclass

from togi.rewards.base import Attempt

Detector = Callable[[str], tuple[str, float]]  # text -> (language code, confidence in [0, 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageCheck:
    """Passes when the detected language is allowed with at least `min_confidence`.

    Answers shorter than `min_chars` pass, because detection is unreliable for them.
    """

    detect: Detector
    allowed: tuple[str, ...]
    min_confidence: float = 0.0
    min_chars: int = 0

    def __call__(self, attempt: Attempt) -> str | None:
        text = attempt.answer.strip()
        if len(text) < self.min_chars:
            return None
        language, confidence = self.detect(text)
        if language not in self.allowed:
            return f"language_{language}"
        return None if confidence >= self.min_confidence else "language_unsure"
