"""The row-wise part of `score`: a batch of samples and their scores."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from togi.core.errors import GraderError
from togi.core.protocols import Scorer
from togi.core.records import Message, Prompt, Sample, led_by_system
from togi.rewards.model import without_system
from togi.stages.data.answers import PlainAnswers
from togi.stages.data.score import ANSWER, Score
from togi.stages.known_answers import has_reference
from togi.stages.model_shards import computed
from togi.stages.shards import Shard

Scores = list[float | str]
"""The scores of a batch, in order; a missing one is replaced by the error message."""


def scores_of(settings: Score, judge: Scorer, batch: Sequence[Sample]) -> Scores:
    """Scores a batch. A score is a finite number; everything else counts as a failure."""
    try:
        scores = judge.score([(as_read(settings, sample.prompt), sample.text) for sample in batch])
    except GraderError as error:
        return [str(error)] * len(batch)
    return [_checked(score) for score in scores]


def as_read(settings: Score, prompt: Prompt) -> tuple[Message, ...]:
    """The turns of a prompt as the scorer reads them. The system turn with the reference answer comes before the text
    of the prompt's own, because many templates accept only one."""
    messages = without_system(prompt.messages) if settings.system == "drop" else prompt.messages
    if settings.reference_turn is None or not has_reference(prompt):
        return messages
    told = settings.reference_turn.replace(ANSWER, (prompt.answer or "").strip())
    if messages[0].role != "system":
        return led_by_system(told, messages)
    return (replace(messages[0], content=f"{told}\n\n{messages[0].content}"), *messages[1:])


def _checked(score: float | GraderError) -> float | str:
    if isinstance(score, GraderError):
        return str(score)
    return score if math.isfinite(score) else f"the scorer gave {score}"


def value_of(settings: Score, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: the scores of the shard's samples. `more` has the `ends` of their answers (`PlainAnswers`)."""
    batch = list(map(PlainAnswers(tuple(more["ends"])), shard.records))
    return computed(settings.scorer, shard, more, lambda judge: scores_of(settings, judge, batch))
