"""`synthesize`: a base model writes new questions from a few examples (docs/methods.md; BARE, arXiv 2502.01697)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, PromptsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs

REASONS = (
    *("no_end", "empty", "no_answer", "label_inside"),
    *("too_short", "too_long", "wrong_language", "copy_of_seed", "repeated_ngrams"),
)
"""What a draft is dropped for: what cannot be read as one, then rules."""


class Synthesize(StageSettings):
    """Few-shot drafts: shuffled examples, then an open question that the model completes."""

    type: Literal["synthesize"] = "synthesize"
    model: ModelRef
    examples: PromptsRef
    count: int = Field(ge=1, description="drafts to sample; each either yields a prompt or a drop with its reason")
    style: Literal["question", "question_answer"] = Field(
        default="question", description="write questions, or questions with answers"
    )
    language: Literal["en", "ja", "ru"] = Field(
        default="en", description="labels of the few-shot prompt, and the filter"
    )
    shots: int = Field(default=5, ge=1, le=32, description="examples shown before each draft")
    samples_per_prompt: int = Field(default=8, ge=1, description="drafts from one choice of examples")
    temperature: float = Field(default=0.9, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=48, ge=1, description="tokens of one draft")
    min_chars: int = Field(default=8, ge=1)
    max_chars: int = Field(default=400, ge=1)
    max_repeated_ngrams: float = Field(
        default=0.3, ge=0, le=1, description="share of repeated word or character n-grams, of question or answer"
    )
    batch_prompts: int = Field(default=8, ge=1, description="few-shot prompts in one unit of work")

    @model_validator(mode="after")
    def _some_draft_fits(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars is {self.min_chars} and max_chars {self.max_chars}: no draft could pass")
        return self


def estimate(settings: Synthesize, inputs: Inputs) -> Cost:
    """At most `count` prompts."""
    return Cost(records=settings.count, sampled=settings.count * settings.max_tokens)


STAGE = StageType(
    "synthesize",
    Synthesize,
    outputs=gives("prompts"),
    work="togi.stages.data.synthesize_work",
    version=3,
    reasons=REASONS,
    estimate=estimate,
)
