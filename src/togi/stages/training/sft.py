"""Declares the stage `train.sft`: supervised fine-tuning on chats, with loss on the assistant's turns."""

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import APART, ChatsRef, refs_of
from togi.core.sources import ModelSource
from togi.stages.base import StageType, gives
from togi.stages.cost import Cost, Inputs
from togi.stages.training.estimates import fixed_cost
from togi.stages.training.job import training_job
from togi.stages.training.optimisation import FixedTraining, Share
from togi.stages.training.presets import fill

PRESETS: dict[str, dict[str, Any]] = {
    "llm-jp-instruct3": {
        "packing": "blocks",
        "max_length": 4096,
        "epochs": 2.0,
        "batch_size": 64,
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "final_rate": 0.1,
        "final_steps": 100,
        "warmup_steps": 20,
        "betas": (0.9, 0.98),
        "weight_decay": 0.1,
    },
    "vikhr-nemo-sft": {
        "score_header": True,
        "overflow": "truncate_to_answer",
        "max_length": 16000,
        "epochs": 1.0,
        "batch_size": 8,
        "learning_rate": 4e-5,
        "schedule": "linear",
        "warmup_steps": 20,
        "lora": {
            "rank": 256,
            "alpha": 256.0,
            "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
        },
    },
}


DRESSES = {"vikhr-nemo-sft": ("vikhr-nemo", ("<|start_header_id|>", "<|end_header_id|>"))}
"""Chat template and added tokens of presets that were published with their own."""

REASONS = ("empty_answer", "two_bos", "no_answer_to_learn", "no_answer_after_truncation", "too_long", "not_rendered")
"""Reasons for which a chat is dropped."""


class TrainSft(FixedTraining):
    """Cross entropy of every assistant turn and its terminator. A turn with `train: false` is context only."""

    adds_router_loss: ClassVar[bool] = True

    type: Literal["train.sft"] = "train.sft"
    preset: Literal["llm-jp-instruct3", "vikhr-nemo-sft"] | None = Field(
        default=None, description="published settings by name; keys in the recipe override them one by one"
    )
    chats: ChatsRef | tuple[ChatsRef, ...] = Field(description="conversations, from one stage or several")
    validation: Share | ChatsRef | None = Field(
        default=None, description="chats, or the share of the prompts to keep out of training", json_schema_extra=APART
    )
    system: str | None = Field(default=None, min_length=1, description="a system prompt to add to the chats")
    system_when: Literal["absent", "always"] = Field(
        default="absent", description="add `system` to chats without a system prompt, or in front of every chat"
    )
    score_header: bool = Field(default=False, description="the tokens that open an assistant turn carry loss too")
    normalise: Literal["tokens", "sequences"] = Field(
        default="tokens", description="weight each token of a step equally, or each chat"
    )
    packing: Literal["apart", "blocks"] = Field(
        default="apart",
        description="apart: chats never attend to each other; blocks: chats are concatenated, cut every max_length "
        "tokens, and attend to all that precedes them in their block",
    )
    overflow: Literal["drop", "error", "truncate", "truncate_to_answer"] = Field(
        default="drop",
        description="treatment of longer chats: drop them, raise an error, cut them at max_length (truncate), or cut "
        "them after the last answer that fits (truncate_to_answer); all are counted",
    )

    rewritten_answers: Literal["split", "last"] = Field(
        default="split",
        description="treatment of answers that the template renders differently in later turns, for example because it "
        "removes thoughts from the history. split: train on each in a separate sequence that ends with it; last: only "
        "the answers that the full chat renders as served carry loss; both are counted",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return fill(values, PRESETS)

    def of_model(self, source: ModelSource) -> ModelSource:
        """The preset's chat template and tokens, for a model whose entry names no template."""
        given = DRESSES.get(self.preset or "")
        if given is None or source.template is not None or source.template_file:
            return source
        return replace(source, template=given[0], tokens=source.tokens or given[1])

    @model_validator(mode="after")
    def _system_is_there(self) -> Self:
        if self.system is None and self.system_when == "always":
            raise ValueError("system_when: always needs `system`: the text to add")
        return self

    @model_validator(mode="after")
    def _blocks_cut_by_themselves(self) -> Self:
        if self.packing == "blocks" and self.overflow != "drop":
            raise ValueError(
                "overflow does nothing with packing: blocks, because blocks are cut wherever they are full"
            )
        if self.packing == "blocks" and self.normalise == "sequences":
            raise ValueError("normalise: sequences weights chats, but blocks mix several chats; use packing: apart")
        return self


def estimate(settings: TrainSft, inputs: Inputs) -> Cost:
    """The cost of training on chats, or on blocks of them."""
    block = (settings.max_length or inputs[settings.init].context or 0) if settings.packing == "blocks" else None
    return fixed_cost(settings, inputs, refs_of(settings.chats), block=block)


STAGE = StageType(
    "train.sft",
    TrainSft,
    outputs=gives("model"),
    work="togi.stages.training.sft_work",
    version=3,
    reasons=REASONS,
    estimate=estimate,
    job=training_job,
)
