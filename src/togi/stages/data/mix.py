"""Declares the stage `mix`: combines data sets, each with its share of the tokens or rows (docs/methods.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import MAIN, ModelRef, RecordsRef, Ref, Settings
from togi.data.mix import normalised
from togi.stages.base import PassingSettings, StageType, passes_on
from togi.stages.cost import Cost, Inputs, Known, count, passing_on

REASONS = ("over_share",)
"""Drop reason of a record: its data set is larger than its share."""

PRESETS: Mapping[str, tuple[float, float]] = {"ipt-3.1": (0.225, 0.775), "ipt-llmjp4": (0.6, 0.4)}
"""Token shares of instruction text and of the corpus: 90B of 400B tokens for LLM-jp-3.1 (our reading of its card), and
60 % in the decay phase of LLM-jp-4."""


class MixedInput(Settings):
    """One data set of the mixture."""

    input: RecordsRef
    share: float = Field(default=1.0, gt=0, description="share of the mixture; shares are scaled to add up to 1")


class Mix(PassingSettings):
    """Combines data sets of one kind, each with its share of the tokens or rows; or repeats a single set.

    The next record comes from the set that is furthest behind its share, as in `train.pretrain`; the records of a set
    keep their order. If a set is larger than its share, a random part of it is used. With `epochs` above 1 a small set
    is repeated, and so is a single set; copies get new ids. An amount of rows is exact; tokens come as near as whole
    records allow. The summary reports the exact shares.
    """

    type: Literal["mix"] = "mix"
    inputs: tuple[MixedInput, ...] = Field(min_length=1)
    by: Literal["tokens", "rows"] = Field(default="tokens", description="unit of the shares and of amount")
    model: ModelRef | None = Field(default=None, description="by tokens: the model whose tokenizer counts the tokens")
    preset: Literal["ipt-3.1", "ipt-llmjp4"] | None = Field(
        default=None,
        description="shares of instruction pre-training, with instruction text as the first input and the corpus "
        "as the second: instruction text is 22.5 % of the tokens in ipt-3.1, 60 % in ipt-llmjp4",
    )
    amount: int | None = Field(
        default=None, ge=1, description="tokens or rows of the mixture; as many as epochs allows when absent"
    )
    epochs: float = Field(
        default=1.0, gt=0, le=1000, description="maximum number of times that a record may occur in the mixture"
    )

    @property
    def passes(self) -> Sequence[Ref]:
        return [each.input for each in self.inputs]

    @property
    def shares(self) -> list[float]:
        """The share of each input; they add up to 1."""
        if self.preset is not None:
            return [*PRESETS[self.preset]]
        return normalised([each.share for each in self.inputs])

    @model_validator(mode="after")
    def _counts_what_it_can(self) -> Self:
        if (self.by == "tokens") != (self.model is not None):
            how = "needs `model` for its tokenizer" if self.by == "tokens" else "does not read model; remove it"
            raise ValueError(f"by: {self.by} {how}")
        return self

    @model_validator(mode="after")
    def _preset_has_its_shares(self) -> Self:
        if self.preset is None:
            return self
        if len(self.inputs) != 2 or any(each.share != 1 for each in self.inputs) or self.by != "tokens":
            raise ValueError(
                f"preset: {self.preset} needs by: tokens and exactly two inputs without shares: instruction text "
                "first, then the corpus"
            )
        return self

    @model_validator(mode="after")
    def _each_input_once(self) -> Self:
        twice = [ref for i, ref in enumerate(self.passes) if ref in self.passes[:i]]
        if twice:
            raise ValueError(f"inputs: {twice[0]} is listed twice; give it one share")
        return self


def estimate(settings: Mix, inputs: Inputs) -> Cost:
    """At most the input records times `epochs`."""
    came, why = count(inputs, settings.passes)
    most = None if came is None else int(came * max(1, settings.epochs))
    if settings.by == "rows" and settings.amount is not None:
        most = settings.amount if most is None else min(most, settings.amount)
    cost = passing_on(inputs[settings.inputs[0].input], most)
    cost.unknown = [why] if came is None else []
    if most is not None:
        cost.outputs[MAIN] = replace(_mixed(settings, [inputs[ref] for ref in settings.passes]), records=most)
    return cost


def _mixed(settings: Mix, known: Sequence[Known]) -> Known:
    """Token counts of the mixed records. If the lengths of one set are unknown, the result is that of the first set,
    with the records of the others beside it."""
    told = [each.tokens + each.added for each in known if each.tokens is not None and not each.samples]
    if len(told) < len(known):
        first, *others = known
        beside = tuple((each.samples, max(0, each.added - first.added)) for each in others)
        return replace(first, group=None, beside=beside if all(each.samples for each in known) else None)
    longest = [None if each.longest is None else each.longest + each.added for each in known]
    sizes = [size for size in longest if size is not None]
    rows = settings.shares
    if settings.by == "tokens":  # at an equal token share, a set of long records has fewer rows
        rows = normalised([share / max(each, 1) for share, each in zip(settings.shares, told, strict=True)])
    mean = sum(share * each for share, each in zip(rows, told, strict=True))
    return Known(tokens=mean, longest=max(sizes) if len(sizes) == len(known) else None)


STAGE = StageType(
    "mix",
    Mix,
    outputs=passes_on(),
    work="togi.stages.data.mix_work",
    version=2,
    reasons=REASONS,
    estimate=estimate,
)
