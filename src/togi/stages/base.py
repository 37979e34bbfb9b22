"""What a stage is.

A stage is two files: `x.py` declares its settings, its outputs and where its work lives; `x_work.py` does the work and
may import anything heavy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import Field

from togi.core.settings import MAIN, Ref, Settings, runtime_setting
from togi.core.sources import ModelSource
from togi.stages.cost import Cost, Inputs

RECORDS_FILE = "output/records.parquet"
MODEL_FOLDER = "output/model"
UNKNOWN = "records"
"""The kind of what cannot be told yet: of a reference that leads nowhere, or round in a circle."""


class Around(Protocol):
    """What settings may ask of the recipe that they stand in."""

    def kind(self, ref: Ref) -> str | None:
        """The kind of what a reference stands for; None for data, which become what they are read as; UNKNOWN for what
        the recipe has to mend."""
        ...

    def stands_for(self, ref: Ref) -> str | None:
        """What a model of `models:` is, or the main output of a stage: model, scorer, a kind of records; None for what
        there is not, or data."""
        ...

    def wanted(self, settings: "StageSettings") -> str | None:
        """The kind of records that the first reader of a stage needs; None where nobody says."""
        ...

    def measured(self) -> list[Ref]:
        """The records on which the stages of the recipe measure models, each once."""
        ...


class StageSettings(Settings):
    """Settings that every stage has."""

    type: str
    seed: int | None = Field(default=None, ge=0, description="seed of this stage; the recipe's when absent")

    def of_model(self, source: ModelSource) -> ModelSource:
        """A model from outside as this stage wants it, where the recipe leaves that open."""
        return source

    def within(self, around: Around) -> Self:
        """The settings in a recipe: what they leave open and other stages decide is filled in. Raises ValueError."""
        return self

    def limited(self, rows: int) -> Self:
        """The settings for a trial in which each data set has at most `rows` rows: counts that this leaves no room for
        are lower."""
        return self

    @property
    def passes(self) -> Sequence[Ref]:
        """The records that the stage passes on, where its output is of their kind; see `PassingSettings`."""
        return ()

    @property
    def downloads(self) -> list[tuple[str, str]]:
        """Data sets of a hub that the stage reads: their ids and revisions."""
        return []

    @property
    def ranks(self) -> int:
        """How many processes do the work together."""
        return 1

    @property
    def pool(self) -> int:
        """How many processes do shards of rows; 1: none besides the stage's own."""
        return 1


class RowSettings(StageSettings):
    """Settings of a stage that maps rows, whose shards several processes can do."""

    workers: int = runtime_setting(1, "processes that do shards of 4,096 rows; 1: the stage's own", ge=1, le=1024)

    @property
    def pool(self) -> int:
        return self.workers


class PassingSettings(StageSettings):
    """Settings of a stage that takes several kinds of records and gives the kind that it takes: that of `passes`."""

    of_data: ClassVar[str | None] = None  # what rows under data: become where `kind` does not say

    kind: Literal["prompts", "chats", "documents", "samples", "pairs"] | None = Field(
        default=None,
        description="what the input's rows become where it stands under data: and no stage that reads this one says; "
        "else the input's own kind",
    )

    def within(self, around: Around) -> Self:
        asked = self.kind or around.wanted(self) or self.of_data
        found = dict.fromkeys(around.kind(ref) or asked for ref in self.passes)
        if UNKNOWN in found:
            return self
        if None in found:
            given = next(ref for ref in self.passes if around.kind(ref) is None)
            raise ValueError(f"say with `kind` what {given} becomes: prompts, chats, documents or pairs")
        if len(found) > 1 or (self.kind is not None and self.kind not in found):
            told = ", ".join(f"{ref} gives {around.kind(ref) or asked}" for ref in self.passes)
            also = f", kind says {self.kind}" if self.kind is not None else ""
            raise ValueError(f"all records have to be of one kind, but {told}{also}")
        return self.model_copy(update={"kind": next(iter(found))})


class RankedSettings(StageSettings):
    """Settings of a stage whose work several processes can do together: all that train a model."""

    processes: int = runtime_setting(
        1, "processes that train together, each with its share of the weights and micro-batches", ge=1, le=1024
    )

    @property
    def ranks(self) -> int:
        return self.processes


@dataclass(frozen=True, slots=True)
class Gives:
    """The outputs of a stage type whose outputs do not depend on the settings: kinds by name."""

    kinds: Mapping[str, str]

    def __call__(self, settings: StageSettings) -> Mapping[str, str]:
        return self.kinds


def gives(main: str, **named: str) -> Gives:
    """The outputs of a stage: the kind of the main one, which `$stage` refers to, and of those that have a name
    (`$stage.name`)."""
    return Gives({MAIN: main, **named})


@dataclass(frozen=True, slots=True)
class PassesOn:
    """The outputs of a stage with `PassingSettings`: the main one is of its kind, `named` have their own."""

    named: Mapping[str, str]

    def __call__(self, settings: PassingSettings) -> Mapping[str, str]:
        return {MAIN: settings.kind or UNKNOWN, **self.named}


def passes_on(**named: str) -> PassesOn:
    """The outputs of a stage that gives the kind that it takes."""
    return PassesOn(named)


@dataclass(frozen=True, slots=True)
class StageType:
    """All that is asked about a kind of stage.

    `outputs(settings)` are the kinds of its outputs by name: a kind of records (core/records.py), model or scorer.
    `work` is a module with `run(settings, context)`. `version` goes up when the same settings give other bytes;
    `reasons` are all that a record can be dropped for; `rows` is the module of a row-wise stage's `map_rows`
    (stages/shards.py). `conserves`: every record that comes in goes out or is dropped for a reason, as in stages that
    map rows; an alarm says where the counts do not add up.

    `estimate(settings, inputs)` is what the stage will take. `job(settings)` says how it trains (a `TrainingJob`); a
    stage without one trains nothing. `measures(settings)` are the records on which it measures models.
    `chooses(settings)` refers to the records of which the outputs are parts. With
    `imports` records come from outside: `work` has `read(settings, takers)` beside `run`.
    """

    name: str
    settings: type[StageSettings]
    outputs: Callable[[Any], Mapping[str, str]]
    work: str
    version: int = 1
    reasons: tuple[str, ...] = ()
    rows: str = ""
    estimate: Callable[[Any, Inputs], Cost] | None = None
    job: Callable[[Any], Any] | None = None
    measures: Callable[[Any], Sequence[Ref]] | None = None
    chooses: Callable[[Any], Ref] | None = None
    imports: bool = False
    conserves: bool = False

    @property
    def adds_up(self) -> bool:
        """Whether what comes in is what goes out and what is dropped."""
        return self.conserves or bool(self.rows)

    @property
    def yields(self) -> str:
        """The outputs in words, as far as they follow from the type alone."""
        if isinstance(self.outputs, PassesOn):
            kinds = {MAIN: "the kind that it takes", **self.outputs.named}
        elif isinstance(self.outputs, Gives):
            kinds = {**self.outputs.kinds}
        else:
            return ""
        named = [f"{kind} ($stage.{name})" for name, kind in kinds.items() if name != MAIN]
        return ", ".join([*([kinds[MAIN]] if MAIN in kinds else []), *named])


def output_path(kind: str, name: str = MAIN) -> str:
    """Where an output lies in the folder of its stage: a file of records, or the folder of a model."""
    if kind in ("model", "scorer"):
        return MODEL_FOLDER if name == MAIN else f"output/{name}"
    return RECORDS_FILE if name == MAIN else f"output/{name}.parquet"


def is_part_of(path: str, output: str) -> bool:
    """Whether a file of a stage's folder, by its path in it, belongs to a named output."""
    folder, _, below = path.partition("/")
    stem = below.partition("/")[0].partition(".")[0]
    return folder == "output" and (stem in ("records", "model") if output == MAIN else stem == output)
