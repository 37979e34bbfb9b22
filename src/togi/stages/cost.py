"""The cost of a stage, as far as it is known before the stage runs. `togi plan` asks each stage for it.

Bounds come from the settings; counts and lengths come from records on disk, through stages that pass records on. A
quantity without a bound is reported as unknown, never guessed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from togi.core.records import Record
from togi.core.settings import MAIN, Ref
from togi.model.sizes import Shape


@dataclass(slots=True)
class Known:
    """The known facts about an output, or a model from outside, for its readers.

    `records` is the largest number of records that it has or will have. `samples` are some of them, or of the records
    that they will be made from; `added` is the most tokens that each gains on the way. `beside` are those of the other
    sets of a mixture, each with its additional tokens, or None if one is unknown. Without samples, `tokens` is the mean
    and `longest` the maximum number of tokens of a record, from the recipe. `group` is the number of answers to each
    prompt. `shape` are the sizes of a model, `context` its context length in tokens, `tokenizer` the folder of its
    tokenizer. `why` states what is unknown, and why.
    """

    records: int | None = None
    samples: Sequence[Record] = ()
    added: int = 0
    beside: tuple[tuple[Sequence[Record], int], ...] | None = ()
    tokens: float | None = None
    longest: int | None = None
    group: int | None = None
    shape: Shape | None = None
    context: int | None = None
    tokenizer: Path | None = None
    template: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The computation of a training stage: the most tokens of a step and of an example, and the tokens of forward-only
    passes. `sampling` is what it samples from its model."""

    step: float = math.inf
    example: float = 0
    forward: float = 0
    sampling: "Sampled | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The samples from one model: `batches` of at most `rows` answers at once, `group` answers to each prompt, with at
    most `prompt` and `answer` tokens."""

    batches: int
    rows: int
    group: int
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Upper bounds for a stage's requests to one model: their number, the tokens of their prompts (or bytes, which are
    more; None if unknown), the tokens of their answers, and the most answers to one of them."""

    calls: int
    read: int | None = 0
    written: int = 0
    choices: int = 1


@dataclass(slots=True)
class Cost:
    """The cost of a stage as known beforehand. `records` and `tokens` are the most that it can output and compute;
    `steps` the most optimiser steps of one training; `sampled` the most tokens that it generates; `unknown` states what
    is missing, and why.

    `asked` are its requests to models, local or on servers, by model name. `calls` is their number and `read` the most
    tokens of their prompts; `plan` keeps those to servers and computes `money` from them. `answer` is the most tokens
    of a single answer of a model that it asks; the settings alone determine it. `stored_bytes` is about
    what the samples of a policy will occupy on disk.

    `peak_bytes` is the peak memory of the device that trains, and `memory` the bytes by device if the recipe names
    hardware. `phases` are the peaks of each phase of a policy's training. `problems` name devices that are too small,
    and what would fit. `alarms` name settings that ask for something impossible.

    `load` is the computation of a training stage. `outputs` are the known facts about the outputs, for the stages that
    read them; nothing is known of an output that is not in it.
    """

    records: int | None = None
    samples: int | None = None
    steps: int | None = None
    tokens: int | None = None
    sampled: int | None = None
    flops: float | None = None
    peak_bytes: float | None = None
    seconds: float | None = None
    calls: int | None = None
    read: int | None = None
    money: float | None = None
    answer: int | None = None
    stored_bytes: int | None = None
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    load: Load = Load()
    outputs: dict[str, Known] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)

    def ask(self, name: str, calls: int, read: int | None, written: int, choices: int = 1) -> None:
        """Adds requests to a model, by its name; None if it is unknown how much they read."""
        before = self.asked.get(name, Asked(calls=0))
        self.asked[name] = Asked(
            calls=before.calls + calls,
            read=None if before.read is None or read is None else before.read + read,
            written=before.written + written,
            choices=max(before.choices, choices),
        )
        self.calls = sum(each.calls for each in self.asked.values())
        sizes = [each.read for each in self.asked.values()]
        self.read = None if None in sizes else sum(size for size in sizes if size is not None)

    def to_json(self) -> dict[str, Any]:
        """The values that `togi plan` reports, as a plain mapping."""
        told = [item.name for item in fields(self) if item.name not in ("load", "outputs", "asked", "answer")]
        return {name: getattr(self, name) for name in told}


class Inputs(Protocol):
    """The information for a stage that estimates its cost."""

    @property
    def takers(self) -> Mapping[str, Sequence[str]]:
        """The stage types that accept each kind of records."""
        ...

    def __getitem__(self, ref: Ref, /) -> Known:
        """The known facts about the target of a reference."""
        ...

    def lengths(self, refs: Sequence[Ref], model: Known, cost: Cost) -> tuple[float, int] | None:
        """Mean and maximum number of tokens of a record of `refs`, rendered with the template of `model`, from some
        records on disk, with a note in `cost`; None if they cannot be counted."""
        ...


def count(inputs: Inputs, refs: Sequence[Ref]) -> tuple[int | None, str]:
    """The total number of records of `refs`; None and the reason if it is unknown."""
    total = 0
    for ref in refs:
        if (records := inputs[ref].records) is None:
            return None, inputs[ref].why
        total += records
    return total, ""


def passing_on(came: Known, records: int | None, added: int = 0) -> Cost:
    """The cost of a stage that outputs at most `records` of its input records, each with at most `added` more
    tokens."""
    cost = Cost(records=records, unknown=[came.why] if came.records is None else [])
    cost.outputs[MAIN] = part_of(came, records, added)
    return cost


def at_most_the_input(settings: Any, inputs: Inputs) -> Cost:
    """The `estimate` of a stage that passes on at most the records of its `input`."""
    came = inputs[settings.input]
    return passing_on(came, came.records)


def part_of(came: Known, records: int | None, added: int = 0) -> Known:
    """The known facts about at most `records` of the input records, each with at most `added` more tokens."""
    group = came.group if records == came.records else None
    return replace(came, records=records, added=came.added + added, group=group, why="")
