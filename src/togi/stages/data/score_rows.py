"""The row-wise part of `score`: a batch of samples and their scores."""

import math
from collections.abc import Sequence
from typing import Any

from togi.core.errors import GraderError
from togi.core.protocols import Scorer
from togi.core.records import Sample
from togi.stages.data.answers import PlainAnswers
from togi.stages.data.score import Score
from togi.stages.model_shards import computed
from togi.stages.shards import Shard

Scores = list[float | str]
"""The scores of a batch, in order; a missing one is replaced by the error message."""


def scores_of(judge: Scorer, batch: Sequence[Sample]) -> Scores:
    """Scores a batch. A score is a finite number; everything else counts as a failure."""
    try:
        scores = judge.score([(sample.prompt.messages, sample.text) for sample in batch])
    except GraderError as error:
        return [str(error)] * len(batch)
    return [_checked(score) for score in scores]


def _checked(score: float | GraderError) -> float | str:
    if isinstance(score, GraderError):
        return str(score)
    return score if math.isfinite(score) else f"the scorer gave {score}"


def value_of(settings: Score, shard: Shard, more: dict[str, Any]) -> dict[str, Any]:
    """`found`: the scores of the shard's samples. `more` has the `ends` of their answers (`PlainAnswers`)."""
    batch = list(map(PlainAnswers(tuple(more["ends"])), shard.records))
    return computed(settings.scorer, shard, more, lambda judge: scores_of(judge, batch))
