"""Declares the stage `curate`: keeps good drafts and records why the others are dropped (docs/methods.md)."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import ModelRef, QuestionsRef, RecipePath, Ref, ScorerRef
from togi.stages.base import PassingSettings, RowSettings, StageType, passes_on, refuse_unread, with_models
from togi.stages.bounds import TURN, answered, ask_scores, last_turns, prompt_size, read, text_size
from togi.stages.cost import Cost, Inputs, Known, passing_on
from togi.stages.failures import FailureSettings

QUESTION = (
    "Is the following a clear and complete question or request that somebody could ask an assistant?\n\n{text}\n\n"
    "Answer yes or no."
)

REASONS = (
    *("too_short", "too_long", "repeated_ngrams", "wrong_language", "not_plain_text", "not_a_question"),
    *("no_answer", "failed", "broken_json", "bad_rewrite", "judged_low", "scored_low"),
)
"""Drop reasons of a draft: rules first, then the judge or the reward model."""

SCORE = "curate_score"
"""The column of `extra` that holds the score by which a draft was kept."""


class Curate(PassingSettings, RowSettings, FailureSettings):
    """Applies rules first, then a model's judgement.

    Two rules are for drafts of a base model, and drop good instructions that people wrote: a draft must ask something
    (`must_ask`), and contain no addresses, special tokens or blanks to fill in (`must_be_plain`).

    `logprob` asks a yes/no question and keeps the `keep_share` of drafts with the largest log p(yes) - log p(no), read
    at the first token of each word. It suits small models.
    `json` asks for {keep, reason, question, answer}, asks again if the answer does not parse, and rejects the draft if
    that one does not parse either. It suits models that can write JSON. The question and the answer in the verdict
    replace the draft's. A new question that breaks a rule rejects the draft; an empty one keeps the draft's own. Drafts
    that stay unchanged are counted.
    `reward` scores each draft's answer and keeps scores of at least `threshold`, or else the `keep_share` with the
    highest scores.
    `rules` asks no model.

    `logprob` and `reward` store the score of each kept draft in `extra` under curate_score: log p(yes) - log p(no), or
    the reward model's score, before a rewrite. `dedup` and `diversify` can read it with `by`.

    Of a chat, only the last question and the last answer are judged and corrected.
    """

    of_data: ClassVar[str | None] = "prompts"

    type: Literal["curate"] = "curate"
    input: QuestionsRef
    kind: Literal["prompts", "chats"] | None = Field(
        default=None,
        description="record kind for rows under data: that are used as input; prompts when absent",
    )
    model: ModelRef | None = Field(
        default=None, description="the judge, for logprob and json, and the model that writes rewrites"
    )
    scorer: ScorerRef | None = Field(default=None, description="reward: the reward model")
    method: Literal["logprob", "json", "reward", "rules"] = "logprob"
    language: Literal["en", "ja", "ru"] = "en"
    language_by: Literal["script", "detector"] = Field(
        default="script",
        description="how the language of a question is detected: by its script only, or also by a detector (fastText)",
    )
    question: str = Field(default=QUESTION, description="the question for the judge; {text} is replaced with the draft")
    yes: str = Field(default="yes", min_length=1)
    no: str = Field(default="no", min_length=1)
    keep_share: float = Field(
        default=0.7, gt=0, le=1, description="logprob, and reward without threshold: share of the judged drafts to keep"
    )
    threshold: float | None = Field(default=None, description="reward: lowest score to keep")
    prompt: RecipePath | None = Field(
        default=None, description="json: your own Jinja file instead of the built-in prompt"
    )
    rewrite: bool = Field(default=False, description="let the model rewrite each kept draft as plain text")
    rewrite_prompt: str = "Rewrite this question so that it is clear and correct. Write only the question.\n\n{text}"
    min_chars: int = Field(default=12, ge=1)
    max_chars: int = Field(default=300, ge=1)
    max_repeated_ngrams: float = Field(
        default=0.3, ge=0, le=1, description="maximum share of repeated word or character n-grams"
    )
    must_ask: bool = Field(
        default=True,
        description="drop a draft without a question mark whose first word (ja: ending) is not one of a short list; "
        "false for instructions that people wrote",
    )
    must_be_plain: bool = Field(
        default=True, description="drop a draft with an address (http://), special tokens (<|) or a blank (_____)"
    )
    max_tokens: int = Field(default=96, ge=1, description="maximum tokens of a rewrite or a JSON verdict")
    alarm_below: float = Field(
        default=0.05, ge=0, le=1, description="raise an alarm if a smaller share of the drafts is kept"
    )
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
            raise ValueError("method: reward asks its `scorer` and reads `model` only for a rewrite; remove it")
        return self

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> Self:
        readers = {
            "keep_share": ("logprob", "reward"),
            "threshold": ("reward",),
            "scorer": ("reward",),
            "prompt": ("json",),
        }
        refuse_unread(self, readers)
        if self.threshold is not None and self.keep_share != type(self).model_fields["keep_share"].default:
            raise ValueError("threshold and keep_share both set how much is kept; set only one of them")
        return self

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars is {self.min_chars} and max_chars {self.max_chars}: no draft could pass")
        if self.yes == self.no:
            raise ValueError(f"yes and no are both {self.yes!r}: they must differ")
        for name, text in (("question", self.question), ("rewrite_prompt", self.rewrite_prompt)):
            if "{text}" not in text:
                raise ValueError(f"{name} must contain {{text}}, the placeholder for the draft; found {text!r}")
        return self


def estimate(settings: Curate, inputs: Inputs) -> Cost:
    """At most the number of input records."""
    came = inputs[settings.input]
    changed = settings.rewrite or settings.method == "json"
    cost = passing_on(came, came.records, settings.max_tokens if changed else 0)
    if settings.model is not None:
        one_token = settings.method == "logprob" and not settings.rewrite
        cost.answer = 1 if one_token else settings.max_tokens
    if came.records is not None:
        _ask(settings, came, came.records, cost)
    return cost


def _ask(settings: Curate, came: Known, records: int, cost: Cost) -> None:
    """Adds the requests about each of the records: a judgement, and a rewrite."""
    if settings.scorer is not None:
        ask_scores(cost, settings.scorer.name, records, read(came, records, TURN, answered), settings.batch_prompts)
    if settings.model is None:
        return
    cost.sampled = 0
    if settings.method != "reward":
        json = settings.method == "json"
        prompt = prompt_size(settings.prompt, "data", "curate", settings.language)
        around, written = (prompt, settings.max_tokens) if json else (text_size(settings.question), 1)
        cost.ask(settings.model.name, records, read(came, records, around + TURN, last_turns), records * written)
        cost.sampled = records * written
        if json:
            cost.notes.append("calls: without second requests for verdicts that are no JSON")
    if settings.rewrite:
        around = text_size(settings.rewrite_prompt) + TURN + (settings.max_tokens if settings.method == "json" else 0)
        written = records * settings.max_tokens
        cost.ask(settings.model.name, records, read(came, records, around, last_turns), written)
        cost.sampled += written


STAGE = StageType(
    "curate",
    Curate,
    outputs=passes_on(),
    work="togi.stages.data.curate_work",
    version=5,
    reasons=REASONS,
    rows="togi.stages.data.curate_rows",
    model_rows="togi.stages.data.curate_rows",
    chooses=lambda settings: settings.input,
    computes=lambda settings: with_models(settings) or settings.language_by == "detector",
    estimate=estimate,
)
