"""What a stage will take, as far as it is known before it runs. `togi plan` asks each stage for it.

Bounds come from the settings; counts and lengths come from what is on the disk, through stages that pass records on.
What cannot be bounded is said to be unknown, never guessed.
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
    """What is known of an output, or of a model from outside, to those that read it.

    `records` are the most that it holds or will hold. `samples` are some of them, or of those that they will be made
    from, with `added`, the most tokens that each gains on the way. Where no sample is there, `tokens` is what a record
    has on average and `longest` what it has at most, as the recipe says. `group` are the answers to each prompt.
    `shape` are the sizes of a model, `context` the tokens of its context, `tokenizer` the folder of its tokenizer.
    `why` says what is not known, and why.
    """

    records: int | None = None
    samples: Sequence[Record] = ()
    added: int = 0
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
    """What a training computes: the most tokens of a step and of an example, and the tokens of passes that only go
    forward. `sampling` is what it samples from its model."""

    step: float = math.inf
    example: float = 0
    forward: float = 0
    sampling: "Sampled | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What is sampled from one model: `batches` of at most `rows` answers at once, `group` of them to each prompt, of
    `prompt` and `answer` tokens at most."""

    batches: int
    rows: int
    group: int
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a stage asks of one model at most: requests, tokens (or bytes, which are more) of their prompts, tokens of
    their answers."""

    calls: int
    read: int = 0
    written: int = 0


@dataclass(slots=True)
class Cost:
    """What is known of a stage beforehand. `records` and `tokens` are the most that it can yield and compute; `sampled`
    the most tokens that it writes; `unknown` says what else would have to be known, and why.

    `calls` are the requests that it makes to models, wherever they are, and `read` the most tokens of their prompts;
    `plan` keeps those that go to servers, and makes `money` of them. A stage that asks some of its models otherwise
    than others says in `asked` what it asks of each, by name. `answer` are the most tokens of a single answer of a
    model that it asks; it follows from the settings alone.

    `peak_bytes` are those of the device that trains, and `memory` the bytes of each device by its name where the recipe
    names hardware. `phases` are the peaks of each phase of a policy's training. `problems` say for what a device is too
    small, and what would fit.

    `load` is that of a training. `outputs` are what is known of the outputs to the stages that read them; of one that
    is not named here, nothing is.
    """

    records: int | None = None
    samples: int | None = None
    tokens: int | None = None
    sampled: int | None = None
    flops: float | None = None
    peak_bytes: float | None = None
    seconds: float | None = None
    calls: int | None = None
    read: int | None = None
    money: float | None = None
    answer: int | None = None
    notes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    load: Load = Load()
    outputs: dict[str, Known] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)

    def ask(self, name: str, calls: int, read: int, written: int) -> None:
        """Adds to what is asked of a model, by its name."""
        before = self.asked.get(name, Asked(calls=0))
        self.asked[name] = Asked(calls=before.calls + calls, read=before.read + read, written=before.written + written)

    def to_json(self) -> dict[str, Any]:
        """What `togi plan` tells, as a plain mapping."""
        told = [item.name for item in fields(self) if item.name not in ("load", "outputs", "asked", "answer")]
        return {name: getattr(self, name) for name in told}


class Inputs(Protocol):
    """What a stage may ask when it estimates its cost."""

    @property
    def takers(self) -> Mapping[str, Sequence[str]]:
        """The stage types that take each kind of records."""
        ...

    def __getitem__(self, ref: Ref, /) -> Known:
        """What is known of what a reference stands for."""
        ...

    def lengths(self, refs: Sequence[Ref], model: Known, cost: Cost) -> tuple[float, int] | None:
        """Mean and most tokens of a record of `refs`, as the template of `model` writes it, from some that are on the
        disk, with a note in `cost`; None where they cannot be counted."""
        ...


def count(inputs: Inputs, refs: Sequence[Ref]) -> tuple[int | None, str]:
    """How many records there are behind `refs` together; None and why, if that is not known."""
    total = 0
    for ref in refs:
        if (records := inputs[ref].records) is None:
            return None, inputs[ref].why
        total += records
    return total, ""


def passing_on(came: Known, records: int | None, added: int = 0) -> Cost:
    """The cost of a stage that leaves at most `records` of those that came; each has gained at most `added` tokens."""
    cost = Cost(records=records, unknown=[came.why] if came.records is None else [])
    cost.outputs[MAIN] = part_of(came, records, added)
    return cost


def at_most_the_input(settings: Any, inputs: Inputs) -> Cost:
    """The `estimate` of a stage that passes on at most what comes as its `input`."""
    came = inputs[settings.input]
    return passing_on(came, came.records)


def part_of(came: Known, records: int | None, added: int = 0) -> Known:
    """What is known of at most `records` of those that came, each of which has gained at most `added` tokens."""
    group = came.group if records == came.records else None
    return replace(came, records=records, added=came.added + added, group=group, why="")
