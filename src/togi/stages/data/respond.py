"""Declares the stage `respond`: models answer prompts."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.records import Message, Record
from togi.core.sampling import Sampling
from togi.core.settings import MAIN, NamedModelRef, PromptsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.bounds import REQUEST, largest, read, records_of, turns_size, whole
from togi.stages.cost import Cost, Inputs, Known, passing_on
from togi.stages.data.follow_ups import follow_up
from togi.stages.known_answers import Answers, AnswersOf

REASONS = ("too_long", "truncated", "empty_answer", "failed")
"""Drop reasons of an answer; a drop has the id of the answer's prompt."""


class Respond(StageSettings, Sampling):
    """Answers of one or several models to each prompt, ordered by prompt, model and answer number.

    An answer is stored as text without its terminator, together with the name of its model and its number. A prompt
    with a follow-up is answered in two rounds: each model answers it once, and its samples answer the follow-up after
    that. The samples hold the whole conversation, so those of different models have different prompts.
    """

    type: Literal["respond"] = "respond"
    prompts: PromptsRef
    models: tuple[NamedModelRef, ...] = Field(
        min_length=1, description="the models that answer; each answers every prompt"
    )
    samples: int = Field(default=1, ge=1, description="number of answers of each model to each prompt")
    system: str | None = Field(default=None, description="system turn for prompts without one; the samples keep it")
    follow_up: str | None = Field(
        default=None,
        min_length=1,
        description="column of the prompts with a second question, as text or as a list of turns; a prompt with an "
        "empty one is answered directly",
    )
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
    """Every model gives `samples` answers of maximum length to every prompt, in one request, and one before each
    follow-up, in another."""
    came = inputs[settings.prompts]
    each = len(settings.models) * settings.samples
    cost = passing_on(came, None if came.records is None else came.records * each, added=_added(settings, came))
    _tell_samples(settings, came, cost.outputs[MAIN])
    cost.answer = settings.max_tokens
    if cost.records is not None:
        cost.samples, cost.sampled = cost.records, cost.records * settings.max_tokens
        _ask(settings, came, came.records or 0, cost)
    return cost


def _tell_samples(settings: Respond, came: Known, known: Known) -> None:
    """Sets what is known of the samples. With follow-ups, several models answer different conversations, and lengths
    are unknown without records."""
    known.group = len(settings.models) * settings.samples
    if settings.follow_up is not None and len(settings.models) > 1:
        known.group = None
    if settings.follow_up is not None and not any(records_of(came)):
        known.tokens, known.longest = None, None


def _system(settings: Respond) -> int:
    """The tokens of the system turn."""
    return 0 if settings.system is None else turns_size([Message("system", settings.system)])


def _added(settings: Respond, came: Known) -> int:
    """The most tokens that models and follow-ups add to a prompt."""
    sizes = [_between(settings, record) for record, _ in records_of(came)] if settings.follow_up is not None else []
    return settings.max_tokens + max(sizes, default=0)


def _between(settings: Respond, record: Record) -> int:
    """The most tokens of a first answer and a follow-up; 0 without one."""
    turns = follow_up(record, settings.follow_up)
    return turns_size([Message("assistant", ""), *turns]) + settings.max_tokens if turns else 0


def _ask(settings: Respond, came: Known, prompts: int, cost: Cost) -> None:
    """Adds the requests to each model: one about each prompt, with the system turn, and those before follow-ups."""
    written, choices = prompts * settings.samples * settings.max_tokens, settings.samples
    found = read(came, prompts, _system(settings))
    for ref in settings.models:
        cost.ask(ref.name, prompts, found, written, choices)
    if settings.follow_up is not None:
        _ask_first(settings, came, prompts, cost)


def _ask_first(settings: Respond, came: Known, prompts: int, cost: Cost) -> None:
    """Adds the requests for the answers before follow-ups, and what the other requests read because of them."""
    more = came.added + _system(settings) + REQUEST
    sizes = [
        between + whole(record) + own + more if (between := _between(settings, record)) else 0
        for record, own in records_of(came)
    ]
    calls = largest([int(size > 0) for size in sizes], prompts) if sizes else prompts
    for ref in settings.models:
        cost.ask(ref.name, calls, largest(sizes, prompts) if sizes else None, calls * settings.max_tokens)
    cost.sampled = (cost.sampled or 0) + len(settings.models) * calls * settings.max_tokens


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
