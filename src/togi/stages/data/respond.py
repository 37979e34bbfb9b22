"""`respond`: models answer prompts."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.records import Message
from togi.core.sampling import Sampling
from togi.core.settings import MAIN, NamedModelRef, PromptsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.bounds import read, turns_size
from togi.stages.cost import Cost, Inputs, Known, passing_on
from togi.stages.known_answers import Answers, AnswersOf

REASONS = ("too_long", "truncated", "empty_answer", "failed")
"""Drop reasons of an answer; a drop has the id of the answer's prompt."""


class Respond(StageSettings, Sampling):
    """Answers of one or several models to each prompt, ordered by prompt, model and answer number.

    An answer is stored as text without its terminator, together with the name of its model and its number.
    """

    type: Literal["respond"] = "respond"
    prompts: PromptsRef
    models: tuple[NamedModelRef, ...] = Field(
        min_length=1, description="the models that answer; each answers every prompt"
    )
    samples: int = Field(default=1, ge=1, description="number of answers of each model to each prompt")
    system: str | None = Field(default=None, description="system turn for prompts without one; the samples keep it")
    truncated: Literal["drop", "keep"] = Field(
        default="drop", description="what to do with an answer that max_tokens cut off"
    )
    batch_prompts: int | None = Field(
        default=None,
        ge=1,
        description="prompts in one unit of work; when absent: 16, or 1,024 if all models are endpoints",
    )

    @field_validator("models")
    @classmethod
    def _each_once(cls, value: tuple[NamedModelRef, ...]) -> tuple[NamedModelRef, ...]:
        twice = [ref for i, ref in enumerate(value) if ref in value[:i]]
        if twice:
            raise ValueError(f"{twice[0]} is listed twice; for more answers of one model raise samples")
        return value

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"{self.samples} samples at temperature 0 would be identical; raise the temperature")
        return self


def estimate(settings: Respond, inputs: Inputs) -> Cost:
    """Every model gives `samples` answers of maximum length to every prompt, in one request."""
    came = inputs[settings.prompts]
    each = len(settings.models) * settings.samples
    cost = passing_on(came, None if came.records is None else came.records * each, added=settings.max_tokens)
    cost.outputs[MAIN].group = each
    cost.answer = settings.max_tokens
    if cost.records is not None:
        cost.samples, cost.sampled = cost.records, cost.records * settings.max_tokens
        _ask(settings, came, came.records or 0, cost)
    return cost


def _ask(settings: Respond, came: Known, prompts: int, cost: Cost) -> None:
    """Adds the requests to each model: one about each prompt, with the system turn."""
    around = 0 if settings.system is None else turns_size([Message("system", settings.system)])
    written, choices = prompts * settings.samples * settings.max_tokens, settings.samples
    found = read(came, prompts, around)
    for ref in settings.models:
        cost.ask(ref.name, prompts, found, written, choices)


def answers(settings: Respond, of: AnswersOf) -> Answers:
    """At most this many answers to each prompt, without scores."""
    each = len(settings.models) * settings.samples
    return Answers(group=each, scores=(), references=of(settings.prompts).references)


STAGE = StageType(
    "respond",
    Respond,
    outputs=gives("samples"),
    work="togi.stages.data.respond_work",
    model_rows="togi.stages.data.respond_rows",
    reasons=REASONS,
    estimate=estimate,
    answers=answers,
)
