"""Declares the stage `score`: a reward model scores answers."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, create_model, field_validator

from togi.core.records import Message, Prompt, Record, Sample
from togi.core.settings import NamedScorerRef, SamplesRef
from togi.rewards.settings import SystemTurns
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.bounds import TURN, ask_scores, read, text_size, turns_size, whole
from togi.stages.cost import Cost, Inputs, passing_on
from togi.stages.known_answers import Answers, AnswersOf

BATCH_OF_ENDPOINT = 2048
"""Samples in one unit of work of a scorer on a server."""

ANSWER = "{answer}"
"""What stands for the reference answer in `reference`."""

PUBLISHED = f"The correct final answer must be: {ANSWER}"
"""The words for `reference: true`, as in the published code of rejection sampling."""

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
    system: SystemTurns = Field(
        default="keep",
        description="the prompt's system turn in what the reward model reads. drop: leave it out, for a reward model "
        "that was trained on user and assistant turns alone",
    )
    reference: bool | str = Field(
        default=False,
        description="tell the reward model each prompt's reference answer in a system turn, as in its training. true: "
        f"in the words {PUBLISHED!r}; a text with {ANSWER}: in your own. A prompt without a reference answer is scored "
        "without it",
    )
    batch_samples: int | None = Field(
        default=None, ge=1, description="samples in one unit of work; when absent: 64, or 2,048 for an endpoint"
    )

    @field_validator("reference")
    @classmethod
    def _has_room(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and ANSWER not in value:
            raise ValueError(f"{value!r} does not contain {ANSWER}, which the reference answer replaces; add it")
        return value

    @property
    def reference_turn(self) -> str | None:
        """The text of the system turn with the reference answer; None if there is no such turn."""
        return PUBLISHED if self.reference is True else self.reference or None

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
        around = TURN + turns_size([Message("system", settings.reference_turn or "")])
        found = read(came, came.records, around, lambda record: whole(record) + _reference(settings, record))
        ask_scores(cost, settings.scorer.name, came.records, found, batch)
    return cost


def _reference(settings: Score, record: Record) -> int:
    """The bytes of the reference answer that the scorer is shown."""
    prompt = record.prompt if isinstance(record, Sample) else record
    return text_size(prompt.answer) if settings.reference and isinstance(prompt, Prompt) else 0


def answers(settings: Score, of: AnswersOf) -> Answers:
    """The input samples with one more score."""
    came = of(settings.samples)
    return came if came.scores is None else replace(came, scores=(*came.scores, settings.score_name))


def no_reference(settings: Score) -> str:
    """The message for samples without any reference answer."""
    return f"reference needs prompts with a reference answer, and no prompt of {settings.samples} has one"


def refuses(settings: Score, of: AnswersOf) -> str:
    """Why the scorer cannot be told the answers; empty if it can."""
    lacks = bool(settings.reference) and of(settings.samples).references is False
    return no_reference(settings) if lacks else ""


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
    refuses=refuses,
)
