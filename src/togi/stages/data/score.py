"""`score`: a reward model scores answers."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, create_model

from togi.core.settings import NamedScorerRef, SamplesRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.bounds import TURN, ask_scores, read
from togi.stages.cost import Cost, Inputs, passing_on
from togi.stages.known_answers import Answers, AnswersOf

BATCH_OF_ENDPOINT = 2048
"""Samples in one unit of work of a scorer on a server."""

REASONS = ("failed",)
"""Drop reason of a sample: it could not be scored."""

_NAME = Field(default=None, min_length=1, description="name of the score; the scorer's name when absent")
_FIELD: dict[str, Any] = {"as": (str | None, _NAME)}  # `as` is a Python keyword, so a class body cannot declare it
_As = create_model("_As", __base__=StageSettings, **_FIELD)


class Score(_As):
    """Adds a score to each answer, under the scorer's name. A sample that cannot be scored is dropped.

    The scorer is a reward model that a stage trained, or an external one (`kind: reward`). It reads the whole
    conversation with its own chat template; an encoder reads the prompt and the answer as a pair. The report gives the
    mean, deviation, extremes and percentiles of the scores and of the answers' lengths in characters, by model.
    """

    type: Literal["score"] = "score"
    samples: SamplesRef
    scorer: NamedScorerRef
    batch_samples: int | None = Field(
        default=None, ge=1, description="samples in one unit of work; when absent: 64, or 2,048 for an endpoint"
    )

    @property
    def score_name(self) -> str:
        """The name of the score."""
        return getattr(self, "as") or self.scorer.name


def estimate(settings: Score, inputs: Inputs) -> Cost:
    """At most the number of input samples; the scorer reads each with its prompt."""
    came = inputs[settings.samples]
    cost = passing_on(came, came.records)
    if came.records is not None:
        batch = settings.batch_samples or BATCH_OF_ENDPOINT
        ask_scores(cost, settings.scorer.name, came.records, read(came, came.records, TURN), batch)
    return cost


def answers(settings: Score, of: AnswersOf) -> Answers:
    """The input samples with one more score."""
    came = of(settings.samples)
    return came if came.scores is None else replace(came, scores=(*came.scores, settings.score_name))


STAGE = StageType(
    "score",
    Score,
    outputs=gives("samples"),
    work="togi.stages.data.score_work",
    version=2,
    model_rows="togi.stages.data.score_rows",
    conserves=True,
    reasons=REASONS,
    chooses=lambda settings: settings.samples,
    estimate=estimate,
    answers=answers,
)
