"""How a recipe writes gates, terms and guards. Variants are told apart by `type`; unknown keys are refused."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.settings import CodePath, ScorerRef, Settings


class GateSettings(Settings):
    """What every gate has."""

    name: str | None = Field(default=None, min_length=1, description="name in the logs; the type when absent")
    bonus: float = Field(default=0.0, description="added when the gate is passed")
    fail_value: float = Field(default=0.0, description="the reward of an answer that this gate stops")


class TerminatorGate(GateSettings):
    """The answer is one turn of the template, closed by its terminator."""

    type: Literal["terminator"] = "terminator"


class LanguageGate(GateSettings):
    """The answer is written in an allowed language."""

    type: Literal["language"] = "language"
    allowed: tuple[str, ...] = Field(min_length=1, description="language codes, like en or ja")
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    min_chars: int = Field(default=20, ge=0, description="shorter answers pass: detectors guess there")


class LengthGate(GateSettings):
    """The answer is neither too short nor too long."""

    type: Literal["length"] = "length"
    unit: Literal["chars", "tokens"] = "chars"
    min: int = Field(default=1, ge=0)
    max: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"min is {self.min} and max is {self.max}: nothing could pass")
        return self


class RepetitionGate(GateSettings):
    """The answer does not repeat itself."""

    type: Literal["repetition"] = "repetition"
    unit: Literal["chars", "words"] = "chars"
    size: int = Field(default=16, ge=1, description="characters or words of an n-gram")
    max_share: float = Field(default=0.3, ge=0, le=1, description="of n-grams that repeat an earlier one")
    max_line_share: float = Field(default=0.3, ge=0, le=1, description="of lines that repeat an earlier one")


class EchoGate(GateSettings):
    """The answer is not the question or the system turn once more."""

    type: Literal["echo"] = "echo"
    size: int = Field(default=6, ge=1, description="characters of an n-gram")
    max_share: float = Field(default=0.6, ge=0, le=1, description="of the answer's n-grams that stand in the prompt")


class PatternGate(GateSettings):
    """The answer does not match a regular expression (Python's, of the trimmed answer; (?i) ignores case)."""

    type: Literal["pattern"] = "pattern"
    forbid: str = Field(min_length=1, description="expression that must be found nowhere in the answer")

    @field_validator("forbid")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value


class TermSettings(Settings):
    """What every term has."""

    weight: float = 1.0


class ScoreTerm(TermSettings):
    """What every term has whose score may be shaped."""

    cap: float | None = Field(default=None, ge=0, description="the largest score that counts")
    negative_scale: float = Field(default=1.0, ge=0, description="what negative scores are multiplied by")


class ModelTerm(ScoreTerm):
    """A reward model."""

    type: Literal["model"] = "model"
    scorer: ScorerRef
    name: str | None = Field(default=None, min_length=1, description="name in the logs; the scorer's when absent")


class FunctionTerm(ScoreTerm):
    """A function `f(prompt, completion) -> number` of a Python file. The file may import what lies beside it."""

    type: Literal["function"] = "function"
    file: CodePath
    name: str = Field(min_length=1, description="the function, and its name in the logs")
    style: Literal["togi", "trl", "trl-text"] = Field(
        default="togi",
        description="trl: the signature of TRL, f(prompts, completions, completion_ids, **columns) -> list; a prompt "
        "and a completion are lists of messages there, with trl-text plain texts",
    )


class OverlongTerm(TermSettings):
    """Soft punishment of long answers: 0, a straight line over the last `cache_tokens`, -1 from `max_tokens` on."""

    type: Literal["overlong"] = "overlong"
    weight: float = Field(default=1.0, gt=0, description="what the punishment, 0 to -1, is multiplied by")
    max_tokens: int = Field(ge=2, description="sampled tokens, terminator included, from which it is -1")
    cache_tokens: int = Field(ge=1, description="tokens before max_tokens over which it grows")
    name: str = Field(default="overlong", min_length=1, description="name in the logs")

    @model_validator(mode="after")
    def _begins_late(self) -> Self:
        if self.cache_tokens >= self.max_tokens:
            raise ValueError(
                f"cache_tokens is {self.cache_tokens} and max_tokens {self.max_tokens}: every answer would be punished"
            )
        return self

    @property
    def free_tokens(self) -> int:
        """The longest answer that is not punished, in tokens."""
        return self.max_tokens - self.cache_tokens


AnyGate = Annotated[
    TerminatorGate | LanguageGate | LengthGate | RepetitionGate | EchoGate | PatternGate, Field(discriminator="type")
]
AnyTerm = Annotated[ModelTerm | FunctionTerm | OverlongTerm, Field(discriminator="type")]


def gate_name(gate: AnyGate) -> str:
    """The gate's name in the logs."""
    return gate.name or gate.type


def term_name(term: AnyTerm) -> str:
    """The term's name in the logs."""
    return term.name or term.scorer.name if isinstance(term, ModelTerm) else term.name


class RewardSettings(Settings):
    """Gates in order, then terms."""

    gates: tuple[AnyGate, ...] = ()
    terms: tuple[AnyTerm, ...] = ()
    floor: bool = Field(default=False, description="an answer that passes never gets less than one that fails")
    max_failed_share: float = Field(default=0.1, ge=0, le=1, description="of answers that graders may fail on")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [*map(gate_name, self.gates), *map(term_name, self.terms)]
        if not names:
            raise ValueError("a reward needs at least one gate or term")
        twice = sorted(name for name in dict.fromkeys(names) if names.count(name) > 1 or name == "total")
        if twice:
            raise ValueError(f"components are logged by name, and {', '.join(twice)} is taken: give another `name`")
        return self


class GuardSettings(Settings):
    """A threshold on one metric of the run.

    `no_spread_share` is the share of groups that teach nothing, `kl` the distance to the stage's initial model in nats
    a token, `diversity` that of the answers divided by the base model's.
    """

    metric: Literal[
        "gate_pass_rate",
        "no_spread_share",
        "length",
        "kl",
        "diversity",
        "failed_share",
        "below_fail_share",
    ]
    min: float | None = None
    max: float | None = None
    patience: int = Field(default=1, ge=1, description="measurements in a row outside before it is an alarm")
    action: Literal["warn", "stop"] = "warn"

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a guard needs min, max or both")
        if self.min is not None and self.max is not None and self.max < self.min:
            raise ValueError(f"min is {self.min} and max is {self.max}: every value would lie outside")
        return self
