"""Settings of gates, terms and guards. `type` selects the variant; unknown keys are rejected."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.judging import JudgeSettings
from togi.core.settings import CodePath, ScorerRef, Settings, runtime_setting


class GateSettings(Settings):
    """Settings of every gate."""

    name: str | None = Field(default=None, min_length=1, description="name in the logs; the type when absent")
    bonus: float = Field(default=0.0, description="added to the reward of an answer that passes")
    fail_value: float = Field(default=0.0, description="the reward of an answer that this gate stops")


class TerminatorGate(GateSettings):
    """The answer is one turn of the template and ends with its terminator."""

    type: Literal["terminator"] = "terminator"


class LanguageGate(GateSettings):
    """The answer is written in an allowed language."""

    type: Literal["language"] = "language"
    allowed: tuple[str, ...] = Field(min_length=1, description="language codes, such as en or ja")
    min_confidence: float = Field(default=0.5, ge=0, le=1, description="lowest confidence of the language detector")
    min_chars: int = Field(
        default=20, ge=0, description="shorter answers pass, because detection is unreliable for them"
    )


class LengthGate(GateSettings):
    """The answer is neither too short nor too long."""

    type: Literal["length"] = "length"
    unit: Literal["chars", "tokens"] = Field(default="chars", description="what min and max count")
    min: int = Field(default=1, ge=0, description="shortest answer that passes")
    max: int | None = Field(default=None, ge=1, description="longest answer that passes; no limit when absent")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"min is {self.min} and max is {self.max}: nothing could pass")
        return self


class RepetitionGate(GateSettings):
    """The answer does not repeat itself."""

    type: Literal["repetition"] = "repetition"
    unit: Literal["chars", "words"] = Field(default="chars", description="unit of an n-gram")
    size: int = Field(default=16, ge=1, description="characters or words per n-gram")
    max_share: float = Field(default=0.3, ge=0, le=1, description="largest share of n-grams that repeat an earlier one")
    max_line_share: float = Field(
        default=0.3, ge=0, le=1, description="largest share of lines that repeat an earlier one"
    )


class EchoGate(GateSettings):
    """The answer does not repeat the question or the system turn."""

    type: Literal["echo"] = "echo"
    size: int = Field(default=6, ge=1, description="characters per n-gram")
    max_share: float = Field(
        default=0.6, ge=0, le=1, description="largest share of the answer's n-grams that occur in the prompt"
    )


class PatternGate(GateSettings):
    """The answer, trimmed, does not match a Python regular expression; (?i) ignores case."""

    type: Literal["pattern"] = "pattern"
    forbid: str = Field(min_length=1, description="expression that the answer must not match anywhere")

    @field_validator("forbid")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value


SystemTurns = Literal["keep", "drop"]
"""Whether a reward model reads the system turns of a prompt."""


class TermSettings(Settings):
    """Settings of every term."""

    weight: float = Field(default=1.0, description="factor of the shaped score in the reward")


class ScoreTerm(TermSettings):
    """Settings of every term with a shaped score."""

    cap: float | None = Field(default=None, ge=0, description="upper limit of scores; larger ones count as this value")
    negative_scale: float = Field(default=1.0, ge=0, description="factor of negative scores")


class ModelTerm(ScoreTerm):
    """A reward model."""

    type: Literal["model"] = "model"
    scorer: ScorerRef = Field(description="a reward model: one that a stage trained, or one from `models`")
    system: SystemTurns = Field(
        default="keep",
        description="the prompt's system turn in what the reward model reads. drop: leave it out, for a reward model "
        "that was trained on user and assistant turns alone",
    )
    name: str | None = Field(default=None, min_length=1, description="name in the logs; the scorer's when absent")


class FunctionTerm(ScoreTerm):
    """A function `f(prompt, completion) -> number` in a Python file. The file may import modules from its folder."""

    type: Literal["function"] = "function"
    file: CodePath = Field(description="the Python file")
    name: str = Field(min_length=1, description="the function, and its name in the logs")
    style: Literal["togi", "trl", "trl-text"] = Field(
        default="togi",
        description="signature of the function. togi: f(prompt, completion) -> number. trl: f(prompts, completions, "
        "completion_ids, **columns) -> list, with lists of messages; None in the list adds nothing to that answer, and "
        "one that nothing grades leaves its group. trl-text: the same with plain texts",
    )
    deadline: float | None = runtime_setting(
        None,
        "seconds that a call may take; one that takes longer is a failure of its answers, as an exception is. The "
        "function then runs in a process of its own, which is killed and started again, so it loses what it keeps in "
        "memory. Without it the run waits for the call, and says so after a minute",
        gt=0,
        le=86_400,
    )


class JudgeTerm(JudgeSettings, ScoreTerm):
    """A language model that grades the answer. An unreadable grade or a failed request counts as a failure, never as
    zero."""

    type: Literal["judge"] = "judge"
    reference: Literal[False] = Field(default=False, description="rewards have no reference answers")
    name: str = Field(default="judge", min_length=1, description="name in the logs")


class OverlongTerm(TermSettings):
    """Length penalty: 0, then linear over the last `cache_tokens`, and -1 from `max_tokens` on."""

    type: Literal["overlong"] = "overlong"
    weight: float = Field(default=1.0, gt=0, description="factor of the penalty")
    max_tokens: int = Field(ge=2, description="sampled tokens, terminator included, from which the penalty is -1")
    cache_tokens: int = Field(ge=1, description="tokens before max_tokens over which the penalty grows")
    name: str = Field(default="overlong", min_length=1, description="name in the logs")

    @model_validator(mode="after")
    def _begins_late(self) -> Self:
        if self.cache_tokens >= self.max_tokens:
            raise ValueError(
                f"cache_tokens is {self.cache_tokens} and max_tokens {self.max_tokens}: every answer would be penalised"
            )
        return self

    @property
    def free_tokens(self) -> int:
        """The longest answer without a penalty, in tokens."""
        return self.max_tokens - self.cache_tokens


AnyGate = Annotated[
    TerminatorGate | LanguageGate | LengthGate | RepetitionGate | EchoGate | PatternGate, Field(discriminator="type")
]
AnyTerm = Annotated[ModelTerm | JudgeTerm | FunctionTerm | OverlongTerm, Field(discriminator="type")]


def gate_name(gate: AnyGate) -> str:
    """The gate's name in the logs."""
    return gate.name or gate.type


def term_name(term: AnyTerm) -> str:
    """The term's name in the logs."""
    return term.name or term.scorer.name if isinstance(term, ModelTerm) else term.name


class RewardSettings(Settings):
    """Gates in order, then terms."""

    gates: tuple[AnyGate, ...] = Field(
        default=(), description="checks, in order; the first that fails ends the grading of an answer"
    )
    terms: tuple[AnyTerm, ...] = Field(default=(), description="scores, added for answers that pass all gates")
    floor: bool = Field(
        default=False, description="an answer that passes all gates never gets less than one that fails"
    )
    max_failed_share: float = Field(
        default=0.1, ge=0, le=1, description="stop the run if graders fail on a larger share of the answers"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [*map(gate_name, self.gates), *map(term_name, self.terms)]
        if not names:
            raise ValueError("a reward needs at least one gate or term")
        twice = sorted(name for name in dict.fromkeys(names) if names.count(name) > 1 or name == "total")
        if twice:
            raise ValueError(f"components are logged by name, and {', '.join(twice)} is taken: set a different `name`")
        return self


class GuardSettings(Settings):
    """A threshold on one metric of the run.

    `no_spread_share` is the share of groups without an advantage, `kl` the KL divergence from the stage's initial model
    in nats per token, `diversity` that of the answers relative to the first measurement.
    """

    metric: Literal[
        "gate_pass_rate",
        "no_spread_share",
        "length",
        "kl",
        "diversity",
        "failed_share",
        "below_fail_share",
    ] = Field(description="the metric to watch")
    min: float | None = Field(default=None, description="smallest value without an alarm")
    max: float | None = Field(default=None, description="largest value without an alarm")
    patience: int = Field(default=1, ge=1, description="measurements in a row that must be outside before the alarm")
    action: Literal["warn", "stop"] = Field(default="warn", description="raise an alarm, or stop the run as well")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a guard needs min, max or both")
        if self.min is not None and self.max is not None and self.max < self.min:
            raise ValueError(f"min is {self.min} and max is {self.max}: every value would lie outside")
        return self
