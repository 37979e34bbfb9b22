"""Sampling settings, shared by every stage and command that asks a model, and their conversion to the parameters of
engines and servers.
"""

from pydantic import Field, field_validator

from togi.core.records import SamplingParams
from togi.core.settings import Settings


class Sampling(Settings):
    """How a model answers. Stages have these keys in addition to their own, and may change the defaults."""

    temperature: float = Field(default=1.0, ge=0, le=2, description="randomness; 0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the top tokens of this total probability")
    top_k: int = Field(default=0, ge=0, description="sample from this many of the likeliest tokens; 0: all")
    min_p: float = Field(
        default=0.0, ge=0, lt=1, description="leave out tokens below this fraction of the likeliest one's probability"
    )
    repetition_penalty: float = Field(
        default=1.0, ge=0.1, description="above 1: makes tokens that were already used less likely"
    )
    max_tokens: int = Field(default=256, ge=1, description="most tokens of an answer, including the terminator")
    stop: tuple[str, ...] = Field(default=(), description="texts that end an answer, in addition to the terminator")
    seed: int | None = Field(default=None, ge=0, description="random seed; another seed gives another answer")

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would end every answer at once; remove it")
        return value

    def params(self, *, seed: int | None = None, n: int = 1) -> SamplingParams:
        """The engine's parameters for `n` answers to each prompt, with the random streams of `seed` (by default the
        setting, else 0)."""
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
