"""Term: a reward model. It is handed in as a `Scorer` and asked once for all answers of a call."""

from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.errors import GraderError
from togi.core.protocols import Scorer
from togi.rewards.base import Attempt, Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGrader:
    """Scores prompts and answers without their terminators: the scorer renders both with its own template.

    An answer that the scorer gives an error for fails; where it raises GraderError, every answer of the call does.
    """

    scorer: Scorer
    name: str

    def __call__(self, attempts: Sequence[Attempt]) -> Sequence[Grade]:
        try:
            scores = self.scorer.score([(attempt.prompt.messages, attempt.answer) for attempt in attempts])
        except GraderError as error:
            return [error] * len(attempts)
        if len(scores) != len(attempts):
            return [GraderError(f"{self.name}: {len(scores)} scores for {len(attempts)} answers")] * len(attempts)
        return [_named(attempt, score) for attempt, score in zip(attempts, scores, strict=True)]


def _named(attempt: Attempt, score: Grade) -> Grade:
    """The score; an error says whose."""
    return GraderError(f"prompt {attempt.prompt.id}: {score}") if isinstance(score, GraderError) else score
