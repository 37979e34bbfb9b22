"""`contrast`: preference pairs without labels (RLCD, arXiv 2307.12950).

The same question is answered under a helpful and under a careless instruction; the first answer is chosen, the second
rejected. The instruction itself is not part of the pair.
"""

from typing import Literal

from pydantic import Field

from togi.core.settings import ModelRef, PromptsRef
from togi.stages.base import StageSettings, StageType


class Contrast(StageSettings):
    """Two answers to each prompt; pairs whose answers are empty or equal are dropped with their reason."""

    type: Literal["contrast"] = "contrast"
    input: PromptsRef
    model: ModelRef
    careless_model: ModelRef | None = Field(default=None, description="answers carelessly; `model` when absent")
    helpful: str = Field(
        default="You are a helpful assistant. Answer the question clearly, correctly and to the point.",
        description="instruction of the chosen side: a system turn, or with {question} the whole user turn",
    )
    careless: str = Field(
        default="You are a careless assistant. Give a vague answer that does not help.",
        description="instruction of the rejected side, likewise",
    )
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.8, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    cut_to_shorter: bool = Field(
        default=True, description="cut both answers to the shorter one's length, so that length alone cannot be learnt"
    )
    min_tokens: int = Field(default=4, ge=1, description="pairs whose shorter answer has fewer tokens are dropped")
    batch_prompts: int = Field(default=32, ge=1, description="prompts in one unit of work")


STAGE = StageType("contrast", Contrast, yields="pairs", work="togi.stages.contrast_work")
