"""How answers are sampled: one table of settings for every stage and command that asks a model, and its one conversion
to what engines and servers are told.
"""

from pydantic import Field, field_validator

from togi.core.records import SamplingParams
from togi.core.settings import Settings


class Sampling(Settings):
    """How a model answers. Stages have these keys beside their own, with defaults of their own."""

    temperature: float = Field(default=1.0, ge=0, le=2, description="randomness; 0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the likeliest tokens of this mass")
    top_k: int = Field(default=0, ge=0, description="sample from this many likeliest tokens; 0: all")
    min_p: float = Field(
        default=0.0, ge=0, lt=1, description="leave out tokens below this share of the likeliest one's probability"
    )
    repetition_penalty: float = Field(
        default=1.0, ge=0.1, description="above 1: tokens that were used become less likely"
    )
    max_tokens: int = Field(default=256, ge=1, description="most tokens of an answer, terminator included")
    stop: tuple[str, ...] = Field(default=(), description="texts that end an answer, besides the terminator")
    seed: int | None = Field(default=None, ge=0, description="another seed, another answer")

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would end every answer at once; remove it")
        return value

    def params(self, *, seed: int | None = None, n: int = 1) -> SamplingParams:
        """What an engine is told: `n` answers to each prompt from the streams of `seed` (the setting, else 0)."""
        chosen = self.seed or 0 if seed is None else seed
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_tokens,
            stop=self.stop,
            n=n,
            seed=chosen,
        )
