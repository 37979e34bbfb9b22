"""Term: a reward model, passed in as a `Scorer` and called once for all answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from togi.core.errors import GraderError
from togi.core.protocols import Scorer
from togi.core.records import Message
from togi.rewards.base import Attempt, Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGrader:
    """Scores prompts and answers without their terminators: the scorer renders both with its own template.

    An answer fails if the scorer returns an error for it. If the scorer raises GraderError, every answer fails.
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


@dataclass(frozen=True, slots=True)
class WithoutSystem:
    """Shows a scorer conversations without their system turns, for one that was trained on user and assistant alone."""

    scorer: Scorer

    def score(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> Sequence[float | GraderError]:
        """The scores of the answers, in order."""
        return self.scorer.score([(without_system(messages), answer) for messages, answer in items])


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns of a conversation that are not system turns."""
    return tuple(message for message in messages if message.role != "system")


def _named(attempt: Attempt, score: Grade) -> Grade:
    """The score; an error names the prompt."""
    return GraderError(f"prompt {attempt.prompt.id}: {score}") if isinstance(score, GraderError) else score
