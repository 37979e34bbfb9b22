"""`curate`: keep what is good, say why the rest is not (docs/methods.md)."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, QuestionsRef, RecipePath, Ref, ScorerRef
from togi.stages.base import PassingSettings, RowSettings, StageType, passes_on
from togi.stages.cost import Cost, Inputs, passing_on
from togi.stages.failures import FailureSettings

QUESTION = (
    "Is the following a clear and complete question or request that somebody could ask an assistant?\n\n{text}\n\n"
    "Answer yes or no."
)

REASONS = (
    *("too_short", "too_long", "repeated_ngrams", "wrong_language", "not_plain_text", "not_a_question"),
    *("no_answer", "failed", "broken_json", "bad_rewrite", "judged_low", "scored_low"),
)
"""What a draft is dropped for: rules first, then the judge or the reward model."""


class Curate(PassingSettings, RowSettings, FailureSettings):
    """Rules first, then a model's judgement.

    `logprob` asks yes or no and keeps the `keep_share` with the largest log p(yes) - log p(no), read at the first token
    of each word: for small models.
    `json` asks for {keep, reason, question, answer} once, again once if it does not parse, then rejects: for models
    that can. The question and the answer in it take the place of the draft's; a question that breaks a rule rejects the
    draft, and an empty one leaves the draft's, which is counted.
    `reward` scores each draft's answer and keeps what lies at `threshold` or above, or else the `keep_share` with the
    highest scores.
    `rules` asks no model.

    Of a chat the last question and the last answer are what is read, and what may be corrected.
    """

    of_data: ClassVar[str | None] = "prompts"

    type: Literal["curate"] = "curate"
    input: QuestionsRef
    kind: Literal["prompts", "chats"] | None = Field(
        default=None,
        description="what rows under data: become, where they are the input; prompts when absent",
    )
    model: ModelRef | None = Field(default=None, description="logprob, json, and for a rewrite: the judge")
    scorer: ScorerRef | None = Field(default=None, description="reward: the reward model")
    method: Literal["logprob", "json", "reward", "rules"] = "logprob"
    language: Literal["en", "ja", "ru"] = "en"
    language_by: Literal["script", "detector"] = Field(
        default="script",
        description="what tells the language of a question: its letters alone, or a detector as well (fastText's)",
    )
    question: str = Field(default=QUESTION, description="what the judge is asked; {text} is the draft")
    yes: str = Field(default="yes", min_length=1)
    no: str = Field(default="no", min_length=1)
    keep_share: float = Field(
        default=0.7, gt=0, le=1, description="logprob, and reward without threshold: share of the judged drafts to keep"
    )
    threshold: float | None = Field(default=None, description="reward: the lowest score that is kept")
    prompt: RecipePath | None = Field(
        default=None, description="json: a jinja file of your own in place of the shipped one"
    )
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

    @property
    def passes(self) -> Sequence[Ref]:
        return (self.input,)

    @model_validator(mode="after")
    def _asks_whom_it_needs(self) -> Self:
        needs = "scorer" if self.method == "reward" else "model"
        if self.method != "rules" and getattr(self, needs) is None:
            raise ValueError(f"method: {self.method} asks a model: name it under `{needs}`, or set method: rules")
        if self.method == "rules" and (self.rewrite or self.model is not None):
            name = "rewrite" if self.rewrite else "model"
            raise ValueError(
                f"method: rules asks no model, so it does not read {name}; remove it, or change the method"
            )
        if self.rewrite and self.model is None:
            raise ValueError("rewrite asks a model: name it under `model`")
        if self.method == "reward" and self.model is not None and not self.rewrite:
            raise ValueError("method: reward asks its `scorer`; it reads `model` for a rewrite alone; remove it")
        return self

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        readers = {
            "keep_share": ("logprob", "reward"),
            "threshold": ("reward",),
            "scorer": ("reward",),
            "prompt": ("json",),
        }
        for name, methods in readers.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.method not in methods:
                raise ValueError(
                    f"{name} is read under method: {' or '.join(methods)} alone, found {self.method}; remove it"
                )
        if self.threshold is not None and self.keep_share != type(self).model_fields["keep_share"].default:
            raise ValueError("threshold and keep_share both say how much is kept; name one of them")
        return self

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars is {self.min_chars} and max_chars {self.max_chars}: no draft could pass")
        if self.yes == self.no:
            raise ValueError(f"yes and no are both {self.yes!r}: no answer would tell them apart")
        for name, text in (("question", self.question), ("rewrite_prompt", self.rewrite_prompt)):
            if "{text}" not in text:
                raise ValueError(f"{name} must hold {{text}}, where the draft goes; found {text!r}")
        return self


def estimate(settings: Curate, inputs: Inputs) -> Cost:
    """At most what comes."""
    came = inputs[settings.input]
    cost = passing_on(came, came.records)
    if settings.model is not None:
        one_token = settings.method == "logprob" and not settings.rewrite
        cost.answer = 1 if one_token else settings.max_tokens
    if settings.model is not None and came.records is not None:
        judged, rewritten = came.records, came.records * settings.rewrite
        cost.calls = judged + rewritten
        cost.sampled = judged * (1 if settings.method == "logprob" else settings.max_tokens)
        cost.sampled += rewritten * settings.max_tokens
    return cost


STAGE = StageType(
    "curate",
    Curate,
    outputs=passes_on(),
    work="togi.stages.data.curate_work",
    version=3,
    reasons=REASONS,
    rows="togi.stages.data.curate_rows",
    chooses=lambda settings: settings.input,
    estimate=estimate,
)
