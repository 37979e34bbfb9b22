"""Declares the stage `train.pretrain`: instruction pre-training (arXiv 2406.14491) and plain continued pre-training."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import APART, ChatsRef, DocumentsRef, Settings
from togi.stages.base import StageType, gives
from togi.stages.cost import Cost, Inputs, Load
from togi.stages.training.job import training_job
from togi.stages.training.optimisation import Share, TokenisedTraining

REASONS = ("empty", "two_bos", "not_rendered")
"""Reasons for which a text is dropped."""


class MixedSource(Settings):
    """One source of the mixture: raw text, or instruction-response pairs and longer conversations, rendered with the
    model's template."""

    documents: DocumentsRef | None = Field(default=None, description="raw text")
    chats: ChatsRef | None = Field(default=None, description="instruction-response pairs, or longer conversations")
    share: float = Field(default=1.0, gt=0, description="share of the tokens; shares are scaled to add up to 1")

    @property
    def ref(self) -> DocumentsRef | ChatsRef:
        """The source's reference, to documents or chats."""
        ref = self.chats if self.documents is None else self.documents
        assert ref is not None
        return ref

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.documents is None) == (self.chats is None):
            raise ValueError("a source is either documents or chats: name one of them")
        return self


class TrainPretrain(TokenisedTraining):
    """Cross entropy of every token of raw documents and instruction-response pairs, mixed by their share of tokens.

    Each document ends with the end-of-text token and attends only to itself. One longer than `max_length` is cut into
    windows. A source that runs out starts again in a new order.
    """

    adds_router_loss: ClassVar[bool] = True

    type: Literal["train.pretrain"] = "train.pretrain"
    sources: tuple[MixedSource, ...] = Field(min_length=1)
    tokens: int | None = Field(default=None, ge=1, description="tokens to train on, all sources together")
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, instead of tokens")
    batch_tokens: int = Field(default=32768, ge=1, description="tokens per optimiser step")
    max_length: int | None = Field(
        default=None, ge=8, description="maximum tokens of a window, at most batch_tokens; absent: the model's context"
    )
    validation: Share | DocumentsRef | None = Field(
        default=None,
        description="documents, or the share of the texts of each source to keep out of training",
        json_schema_extra=APART,
    )
    bos: bool = Field(
        default=True, description="documents start with the tokens that the tokenizer itself adds before a text"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(
        default=0.1, ge=0, description="weight decay of AdamW; norms and biases are not decayed"
    )

    def limited(self, rows: int) -> Self:
        """Limits the training to one window for each row of each source."""
        tokens = rows * len(self.sources) * (self.max_length or self.batch_tokens)
        if tokens >= (self.tokens or (self.steps or 0) * self.batch_tokens):
            return self
        steps = -(-tokens // self.batch_tokens)
        length = {"steps": steps} if self.tokens is None else {"tokens": tokens}
        return self.model_copy(update={**length, **self.brief(steps)})

    @model_validator(mode="after")
    def _tokens_or_steps(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("set either tokens or steps: how long to train")
        return self

    @model_validator(mode="after")
    def _a_step_holds_a_window(self) -> Self:
        if self.max_length is not None and self.max_length > self.batch_tokens:
            raise ValueError(
                f"max_length: a window of {self.max_length} tokens is larger than a step (batch_tokens: "
                f"{self.batch_tokens}); lower max_length or raise batch_tokens"
            )
        return self

    @model_validator(mode="after")
    def _each_source_once(self) -> Self:
        names = [str(source.ref) for source in self.sources]
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise ValueError(f"sources: {twice[0]} is listed twice; give it one share")
        return self


def estimate(settings: TrainPretrain, inputs: Inputs) -> Cost:
    """The cost of training on the requested number of tokens, in windows."""
    window = settings.max_length or inputs[settings.init].context or 0
    tokens = settings.tokens or (settings.steps or 0) * settings.batch_tokens
    steps = math.ceil(tokens / settings.batch_tokens)
    cost = Cost(tokens=tokens, steps=steps, load=Load(step=settings.batch_tokens + window, example=window))
    epochs = {str(source.ref): _epochs(settings, inputs, source, tokens) for source in settings.sources}
    if told := [f"{name} about {times:,.0f} times" for name, times in epochs.items() if times >= 1.5]:
        cost.notes.append(f"sources smaller than their share are read again: {', '.join(told)}")
    return cost


def _epochs(settings: TrainPretrain, inputs: Inputs, source: MixedSource, tokens: int) -> float:
    """How often a source is read; 0 if its records or their lengths are unknown."""
    records, lengths = inputs[source.ref].records, inputs.lengths([source.ref], inputs[settings.init], Cost())
    if not records or lengths is None or not lengths[0]:
        return 0.0
    share = source.share / sum(each.share for each in settings.sources)
    return tokens * share / (records * lengths[0])


STAGE = StageType(
    "train.pretrain",
    TrainPretrain,
    outputs=gives("model"),
    work="togi.stages.training.pretrain_work",
    version=4,
    reasons=REASONS,
    estimate=estimate,
    job=training_job,
)
