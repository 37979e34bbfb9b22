"""`curate`: keep what is good, say why the rest is not (docs/methods.md)."""

from typing import Literal

from pydantic import Field

from togi.core.settings import ModelRef, PromptsRef
from togi.stages.base import StageSettings, StageType

QUESTION = (
    "Is the following a clear and complete question or request that somebody could ask an assistant?\n\n{text}\n\n"
    "Answer yes or no."
)


class Curate(StageSettings):
    """Rules first, then a model's judgement.

    `logprob` asks yes or no and keeps the `keep_share` with the largest log p(yes) - log p(no), read at the first token
    of each word: for small models.
    `json` asks for {keep, reason, question} once, again once if it does not parse, then rejects: for models that can.
    `rules` asks no model.
    """

    type: Literal["curate"] = "curate"
    input: PromptsRef
    model: ModelRef | None = Field(default=None, description="the judge; not needed for method rules")
    method: Literal["logprob", "json", "rules"] = "logprob"
    language: Literal["en", "ja", "ru"] = "en"
    question: str = Field(default=QUESTION, description="what the judge is asked; {text} is the draft")
    yes: str = Field(default="yes", min_length=1)
    no: str = Field(default="no", min_length=1)
    keep_share: float = Field(default=0.7, gt=0, le=1, description="logprob: share of the judged drafts to keep")
    rewrite: bool = Field(default=False, description="let the model write each kept draft once more, as plain text")
    rewrite_prompt: str = "Rewrite this question so that it is clear and correct. Write only the question.\n\n{text}"
    min_chars: int = Field(default=12, ge=1)
    max_chars: int = Field(default=300, ge=1)
    max_repeated_ngrams: float = Field(
        default=0.3, ge=0, le=1, description="share of repeated word or character n-grams"
    )
    max_tokens: int = Field(default=96, ge=1, description="tokens of a rewrite or of a JSON verdict")
    alarm_below: float = Field(default=0.05, ge=0, le=1, description="a kept share under this is an alarm")
    batch_prompts: int = Field(default=64, ge=1, description="drafts in one unit of work")


STAGE = StageType("curate", Curate, yields="prompts", work="togi.stages.curate_work")
