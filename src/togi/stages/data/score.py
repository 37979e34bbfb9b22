"""`score`: a reward model scores answers."""

from typing import Any, Literal

from pydantic import Field, create_model

from togi.core.settings import NamedScorerRef, SamplesRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs, passing_on

ITEMS = 64  # per request to a server

REASONS = ("failed",)
"""Drop reason of a sample: it could not be scored."""

_NAME = Field(default=None, min_length=1, description="name of the score; the scorer's name when absent")
_FIELD: dict[str, Any] = {"as": (str | None, _NAME)}  # `as` is a Python keyword, so a class body cannot declare it
_As = create_model("_As", __base__=StageSettings, **_FIELD)


class Score(_As):
    """Adds a score to each answer, under the scorer's name. A sample that cannot be scored is dropped.

    The scorer is a reward model that a stage trained, or an external one (`kind: reward`). It reads the whole
    conversation with its own chat template; an encoder reads the prompt and the answer as a pair.
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
    """At most the number of input samples."""
    came = inputs[settings.samples]
    cost = passing_on(came, came.records)
    cost.calls = None if came.records is None else -(-came.records // ITEMS)
    return cost


STAGE = StageType(
    "score",
    Score,
    outputs=gives("samples"),
    work="togi.stages.data.score_work",
    model_rows="togi.stages.data.score_rows",
    conserves=True,
    reasons=REASONS,
    chooses=lambda settings: settings.samples,
    estimate=estimate,
)
