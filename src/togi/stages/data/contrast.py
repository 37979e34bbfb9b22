"""`contrast`: preference pairs without labels (RLCD, arXiv 2307.12950).

The same question is answered under a helpful and under careless instructions; the first answer is chosen, each of the
others rejected. The instructions themselves are not part of a pair.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, PromptsRef, Settings
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs, passing_on
from togi.stages.failures import FailureSettings

REASONS = ("answer_too_short", "empty_answer", "equal_answers", "failed")
"""What a pair is dropped for; the drop names its prompt."""


class Careless(Settings):
    """One way to answer badly."""

    instruction: str = Field(
        default="You are a careless assistant. Give a vague answer that does not help.",
        description="a system turn, or with {question} the whole user turn",
    )
    model: ModelRef | None = Field(default=None, description="answers so; the stage's model when absent")


class Contrast(StageSettings, FailureSettings):
    """A helpful answer to each prompt beside careless ones; a pair with an empty side, two equal ones, or a side that a
    server did not answer is dropped."""

    type: Literal["contrast"] = "contrast"
    input: PromptsRef
    model: ModelRef
    helpful: str = Field(
        default="You are a helpful assistant. Answer the question clearly, correctly and to the point.",
        description="instruction of the chosen side: a system turn, or with {question} the whole user turn",
    )
    examples: PromptsRef | None = Field(
        default=None,
        description="answered questions: the chosen side continues a list of them, in place of `helpful` and of the "
        "template; for base models, which do not follow instructions",
    )
    shots: int = Field(default=6, ge=1, le=32, description="examples before a question, drawn anew for each")
    language: Literal["en", "ja", "ru"] = Field(default="en", description="labels of that list")
    careless: tuple[Careless, ...] = Field(
        default=(Careless(),), description="ways to answer badly: each makes one pair of each prompt"
    )
    off_topic: bool = Field(
        default=False, description="also reject the helpful answer to another prompt: one more pair of each prompt"
    )
    questions: bool = Field(
        default=False,
        description="also reject the question of another prompt: policies learn to answer with a question",
    )
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.8, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    cut_to_shorter: bool = Field(
        default=True, description="cut both answers to the shorter one's length, so that length alone cannot be learnt"
    )
    min_tokens: int = Field(default=4, ge=1, description="pairs whose shorter answer has fewer tokens are dropped")
    batch_prompts: int = Field(default=32, ge=1, description="prompts in one unit of work")

    @model_validator(mode="after")
    def _pairs_can_be_made(self) -> Self:
        if not (self.careless or self.off_topic or self.questions):
            raise ValueError("nothing is rejected: name a way under careless, or set off_topic or questions")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}: every pair would drop")
        return self


def estimate(settings: Contrast, inputs: Inputs) -> Cost:
    """One pair of each prompt for each way to answer badly; both answers as long as they may be."""
    came = inputs[settings.input]
    ways = len(settings.careless) + settings.off_topic + settings.questions
    cost = passing_on(came, None if came.records is None else came.records * ways, added=2 * settings.max_tokens)
    cost.answer = settings.max_tokens
    if came.records is not None:
        cost.calls = (1 + len(settings.careless)) * came.records
        cost.sampled = cost.calls * settings.max_tokens
    return cost


STAGE = StageType(
    "contrast",
    Contrast,
    outputs=gives("pairs"),
    work="togi.stages.data.contrast_work",
    version=4,
    reasons=REASONS,
    estimate=estimate,
)
