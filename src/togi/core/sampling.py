"""Sampling settings, shared by every stage and command that asks a model, their conversion to the parameters of engines
and servers, and the settings that model cards recommend.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from togi.core.records import SamplingParams
from togi.core.settings import Settings


class Drawing(Settings):
    """How the tokens of an answer are drawn, and their maximum number."""

    temperature: float = Field(default=1.0, ge=0, le=2, description="randomness; 0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the top tokens of this total probability")
    top_k: int = Field(default=0, ge=0, description="sample from this many of the likeliest tokens; 0: all")
    min_p: float = Field(
        default=0.0, ge=0, lt=1, description="leave out tokens below this fraction of the likeliest one's probability"
    )
    repetition_penalty: float = Field(
        default=1.0, ge=0.1, description="above 1: makes tokens that were already used less likely"
    )
    max_tokens: int = Field(default=256, ge=1, description="maximum tokens of an answer, terminator included")


class Sampling(Drawing):
    """How a model answers. Stages have these keys in addition to their own, and may change the defaults."""

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


# --- what model cards recommend ---------------------------------------------------------------------------------------

PresetName = Literal["arrowideative", "llm-jp-3.1", "vikhr-nemo"]
NONE = "none"
"""In place of a preset's name: the plain defaults, also for a model with stored settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The sampling settings of a published model card. `too_hot` is the temperature from which on the card warns of
    defects in answers, None if it does not; `advice` is the card's range."""

    drawing: Drawing
    too_hot: float | None = None
    advice: str = ""


PRESETS: Mapping[PresetName, Preset] = {
    "arrowideative": Preset(drawing=Drawing(temperature=0.5, top_p=0.95, repetition_penalty=1.05, max_tokens=1024)),
    "llm-jp-3.1": Preset(drawing=Drawing(temperature=0.7, top_p=0.95, repetition_penalty=1.05, max_tokens=100)),
    # The card gives ranges: 0.1 to 0.5, and 30 to 50. The values within them are our reading: the temperature is that
    # of its grounded answers, top_k the middle. The length is that of its grounded answers too.
    "vikhr-nemo": Preset(
        drawing=Drawing(temperature=0.3, top_k=40, max_tokens=2048),
        too_hot=1.0,
        advice="0.1 to 0.5",
    ),
}
"""Sources: the code samples on the cards of ArrowIdeative-13b-NeoBase-ZERO-llm-jp-v0.1 and llm-jp-3.1-1.8b-instruct4,
and the notes on the card of Vikhr-Nemo-12B-Instruct-R-21-09-24. What a card does not set has no effect here."""


class Recommended(Drawing):
    """The sampling settings that are recommended for a model, and the preset that they come from, if any."""

    preset: str | None = Field(default=None, description="the preset with these settings")

    @classmethod
    def of(cls, given: PresetName | Drawing) -> "Recommended":
        """Those of a preset, or the given ones."""
        if isinstance(given, Drawing):
            return cls(**given.model_dump(include=set(Drawing.model_fields)))
        return cls(**PRESETS[given].drawing.model_dump(), preset=given)

    def values(self) -> dict[str, Any]:
        """The settings without the preset's name."""
        return self.model_dump(include=set(Drawing.model_fields))

    @property
    def shown(self) -> str:
        """The settings that have an effect, as text."""
        plain = Drawing().model_dump() | {"temperature": None, "max_tokens": self.max_tokens}
        return ", ".join(f"{name} {value:g}" for name, value in self.values().items() if value != plain[name])

    def generating(self) -> dict[str, Any]:
        """The settings as transformers' `generate` names them, without the length. All are set, because the library and
        a model's folder have other defaults (such as 50 for `top_k`)."""
        values = self.model_dump(include=set(Drawing.model_fields) - {"max_tokens"})
        greedy = {"do_sample": False, "repetition_penalty": self.repetition_penalty}
        return {"do_sample": True, **values} if self.temperature > 0 else greedy

    @property
    def source(self) -> Preset | None:
        """The preset; None for values of one's own, and for a preset of a newer togi."""
        return next((preset for name, preset in PRESETS.items() if name == self.preset), None)

    def warning(self, temperature: float) -> str | None:
        """What the preset's card says against `temperature`; None if it says nothing."""
        known = self.source
        if known is None or known.too_hot is None or temperature < known.too_hot:
            return None
        return (
            f"temperature {temperature:g}: the card of {self.preset} warns of random defects in answers at "
            f"{known.too_hot:g}, and recommends {known.advice}"
        )
