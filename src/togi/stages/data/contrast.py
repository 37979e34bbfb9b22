"""Declares the stage `contrast`: preference pairs without labels (RLCD, arXiv 2307.12950).

The same question is answered under a helpful instruction and under careless ones. The first answer is chosen, each of
the others is rejected. The instructions themselves are not part of a pair.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, PromptsRef, Settings
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.bounds import TURN, beside, examples_shown, read, text_size
from togi.stages.cost import Cost, Inputs, passing_on
from togi.stages.failures import FailureSettings

REASONS = ("answer_too_short", "empty_answer", "equal_answers", "failed")
"""Drop reasons of a pair; a drop has the id of the pair's prompt."""


class Careless(Settings):
    """One careless instruction, and the model that answers under it."""

    instruction: str = Field(
        default="You are a careless assistant. Give a vague answer that does not help.",
        description="a system turn, or the whole user turn if it contains {question}",
    )
    model: ModelRef | None = Field(
        default=None, description="model that answers under this instruction; the stage's model when absent"
    )


class Contrast(StageSettings, FailureSettings):
    """Pairs a helpful answer to each prompt with careless ones. A pair is dropped if a side is empty, if both sides are
    equal, or if a server did not answer."""

    type: Literal["contrast"] = "contrast"
    input: PromptsRef
    model: ModelRef
    helpful: str = Field(
        default="You are a helpful assistant. Answer the question clearly, correctly and to the point.",
        description="instruction for the chosen side: a system turn, or the whole user turn if it contains {question}",
    )
    examples: PromptsRef | None = Field(
        default=None,
        description="answered questions: the chosen side continues a list of them, instead of using `helpful` and "
        "the template; for base models, which do not follow instructions",
    )
    shots: int = Field(default=6, ge=1, le=32, description="examples before each question, drawn anew for each")
    language: Literal["en", "ja", "ru"] = Field(default="en", description="language of the labels in that list")
    careless: tuple[Careless, ...] = Field(
        default=(Careless(),), description="careless instructions: each makes one pair per prompt"
    )
    off_topic: bool = Field(
        default=False, description="also reject the helpful answer to another prompt: one more pair per prompt"
    )
    questions: bool = Field(
        default=False,
        description="also reject the question of another prompt, since policies learn to answer with a question: "
        "one more pair per prompt",
    )
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.8, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    cut_to_shorter: bool = Field(
        default=True,
        description="cut both answers to the length of the shorter one, so that length alone cannot be learnt",
    )
    min_tokens: int = Field(default=4, ge=1, description="drop pairs whose shorter answer has fewer tokens")
    batch_prompts: int = Field(default=32, ge=1, description="prompts in one unit of work")

    @model_validator(mode="after")
    def _pairs_can_be_made(self) -> Self:
        if not (self.careless or self.off_topic or self.questions):
            raise ValueError("nothing is rejected: add an instruction under careless, or set off_topic or questions")
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}: every pair would be dropped"
            )
        return self


def estimate(settings: Contrast, inputs: Inputs) -> Cost:
    """One pair per prompt for each rejected side; both answers have the maximum length."""
    came = inputs[settings.input]
    ways = len(settings.careless) + settings.off_topic + settings.questions
    cost = passing_on(came, None if came.records is None else came.records * ways, added=2 * settings.max_tokens)
    cost.answer = settings.max_tokens
    if came.records is not None:
        _ask(settings, inputs, came.records, cost)
        cost.sampled = (1 + len(settings.careless)) * came.records * settings.max_tokens
    return cost


def _ask(settings: Contrast, inputs: Inputs, prompts: int, cost: Cost) -> None:
    """Adds a request about each prompt under every instruction; the chosen side may continue examples instead."""
    came, written = inputs[settings.input], prompts * settings.max_tokens
    for way in settings.careless:
        around = text_size(way.instruction) + TURN
        cost.ask((way.model or settings.model).name, prompts, read(came, prompts, around), written)
    if settings.examples is None:
        found = read(came, prompts, text_size(settings.helpful) + TURN)
    else:
        found = beside(read(came, prompts), examples_shown(inputs[settings.examples], settings.shots), prompts)
    cost.ask(settings.model.name, prompts, found, written)


STAGE = StageType(
    "contrast",
    Contrast,
    outputs=gives("pairs"),
    work="togi.stages.data.contrast_work",
    version=5,
    reasons=REASONS,
    estimate=estimate,
)
