"""The interface of stages: the settings that all have, and what other units need to know about a stage type.

A stage has two files: `x.py` declares its settings, its outputs and its work module; `x_work.py` does the work and may
have heavy imports.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import Field

from togi.core.settings import MAIN, Ref, Settings, references, runtime_setting
from togi.core.sources import ModelSource
from togi.stages.cost import Cost, Inputs
from togi.stages.known_answers import Answers, AnswersOf

RECORDS_FILE = "output/records.parquet"
MODEL_FOLDER = "output/model"
UNKNOWN = "records"
"""The kind of a reference that cannot be resolved: its target does not exist, or is part of a cycle."""


class Around(Protocol):
    """What settings may ask about the recipe that contains them."""

    def kind(self, ref: Ref) -> str | None:
        """The kind of a reference's target; None for data, whose kind depends on the reader; UNKNOWN if the recipe is
        wrong."""
        ...

    def stands_for(self, ref: Ref) -> str | None:
        """The kind of a model of `models:` or of a stage's output: model, scorer, a kind of records; None for data, and
        if the target does not exist."""
        ...

    def wanted(self, settings: "StageSettings") -> str | None:
        """The kind of records that the first reader of a stage needs; None if no reader determines it."""
        ...

    def measured(self) -> list[Ref]:
        """The records on which stages of the recipe evaluate models, each once."""
        ...


class StageSettings(Settings):
    """Settings that every stage has."""

    lengths: ClassVar[tuple[str, ...]] = ()
    """The settings that say how long the stage works. If the command line sets one, `--limit` lowers no count of it."""

    type: str
    seed: int | None = Field(default=None, ge=0, description="seed of this stage; when absent, the recipe's")

    def of_model(self, source: ModelSource) -> ModelSource:
        """A model from outside, with this stage's choices where the recipe makes none."""
        return source

    def within(self, around: Around) -> Self:
        """The settings, completed with values that other stages of the recipe determine. Raises ValueError."""
        return self

    def limited(self, rows: int) -> Self:
        """The settings for a trial in which each data set has at most `rows` rows: counts are lowered to match."""
        return self

    @property
    def passes(self) -> Sequence[Ref]:
        """The records that the stage passes on, if its output has their kind; see `PassingSettings`."""
        return ()

    @property
    def downloads(self) -> list[tuple[str, str]]:
        """The ids and revisions of the data sets on a hub that the stage reads."""
        return []

    @property
    def ranks(self) -> int:
        """The number of processes that do the work together."""
        return 1

    @property
    def pool(self) -> int:
        """The number of processes that do shards of rows; 1: only the stage's own process."""
        return 1


class RowSettings(StageSettings):
    """Settings of a stage that maps rows, whose shards several processes can do."""

    workers: int = runtime_setting(1, "processes for shards of 4,096 rows; 1: only the stage's own", ge=1, le=1024)

    @property
    def pool(self) -> int:
        return self.workers


class PassingSettings(StageSettings):
    """Settings of a stage that accepts several kinds of records and gives the kind of its input, `passes`."""

    of_data: ClassVar[str | None] = None  # the kind of rows under data: if `kind` is absent

    kind: Literal["prompts", "chats", "documents", "samples", "pairs"] | None = Field(
        default=None,
        description="kind of records for an input under data:, if no stage that reads this one determines it; "
        "otherwise the input's own kind",
    )

    def within(self, around: Around) -> Self:
        asked = self.kind or around.wanted(self) or self.of_data
        found = dict.fromkeys(around.kind(ref) or asked for ref in self.passes)
        if UNKNOWN in found:
            return self
        if None in found:
            given = next(ref for ref in self.passes if around.kind(ref) is None)
            raise ValueError(f"set `kind` to read {given} as prompts, chats, documents or pairs")
        if len(found) > 1 or (self.kind is not None and self.kind not in found):
            told = ", ".join(f"{ref} gives {around.kind(ref) or asked}" for ref in self.passes)
            also = f", kind is {self.kind}" if self.kind is not None else ""
            raise ValueError(f"all records must be of one kind, but {told}{also}")
        return self.model_copy(update={"kind": next(iter(found))})


class RankedSettings(StageSettings):
    """Settings of a stage whose work several processes can do together: every stage that trains a model."""

    processes: int = runtime_setting(
        1, "processes that train together, each with a share of the weights and micro-batches", ge=1, le=1024
    )

    @property
    def ranks(self) -> int:
        return self.processes


@dataclass(frozen=True, slots=True)
class Gives:
    """The outputs of a stage type, kinds by name, if they do not depend on the settings."""

    kinds: Mapping[str, str]

    def __call__(self, settings: StageSettings) -> Mapping[str, str]:
        return self.kinds


def gives(main: str, **named: str) -> Gives:
    """The outputs of a stage: the kind of the main one, which `$stage` refers to, and of named ones (`$stage.name`)."""
    return Gives({MAIN: main, **named})


@dataclass(frozen=True, slots=True)
class PassesOn:
    """The outputs of a stage with `PassingSettings`: the main one has the stage's kind, `named` have their own."""

    named: Mapping[str, str]

    def __call__(self, settings: PassingSettings) -> Mapping[str, str]:
        return {MAIN: settings.kind or UNKNOWN, **self.named}


def passes_on(**named: str) -> PassesOn:
    """The outputs of a stage that gives the kind of its input."""
    return PassesOn(named)


def refuse_unread(settings: Any, readers: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for a setting that `settings.method` does not read; `readers` has the methods that read it."""
    for name, methods in readers.items():
        if getattr(settings, name) != type(settings).model_fields[name].default and settings.method not in methods:
            raise ValueError(
                f"{name} is only read with method: {' or '.join(methods)}, found {settings.method}; remove it"
            )


def with_models(settings: StageSettings) -> bool:
    """Whether the settings refer to a model."""
    return any({"model", "scorer", "embedder"} & {*ref.kinds} for _, ref in references(settings))


@dataclass(frozen=True, slots=True)
class StageType:
    """The definition of a type of stage.

    `outputs(settings)` are the kinds of its outputs by name: a kind of records (core/records.py), model or scorer.
    `work` is a module with `run(settings, context)`. Raise `version` when the same settings give other bytes. `reasons`
    are all reasons for which it drops records; `rows` is the module that does a row-wise stage's shards
    (stages/shards.py), `model_rows` the one for shards that a local model computes (stages/model_shards.py).
    `conserves`: every record that comes in goes out or is dropped for a reason, as in stages that map rows; an alarm
    reports counts that do not add up. `computes(settings)`: its result depends on how this machine rounds, so that an
    unfinished stage continues only under the numerics that it began with.

    `estimate(settings, inputs)` is the cost of the stage. `job(settings)` is how it trains (a `TrainingJob`); a stage
    without one does not train. `measures(settings)` are the records on which it evaluates models. `chooses(settings)`
    refers to the records of which the outputs are subsets; `lacks(settings, count)` says why the work refuses that many
    of them, empty if it does not. `answers(settings, of)` is what is known of the samples that it will give, from what
    is known of its inputs (`of`); `refuses(settings, of)` says why the work refuses such inputs, and
    `empties(settings, of)` why it would give no record with them, except in named outputs. With `imports`, records come
    from outside: `work` has `read(settings, takers)` and `row_of(settings, record)` in addition to `run`. `cleans`: it
    drops records that are in sets on which models are measured.
    """

    name: str
    settings: type[StageSettings]
    outputs: Callable[[Any], Mapping[str, str]]
    work: str
    version: int = 1
    reasons: tuple[str, ...] = ()
    rows: str = ""
    model_rows: str = ""
    estimate: Callable[[Any, Inputs], Cost] | None = None
    job: Callable[[Any], Any] | None = None
    measures: Callable[[Any], Sequence[Ref]] | None = None
    chooses: Callable[[Any], Ref] | None = None
    lacks: Callable[[Any, int], str] | None = None
    answers: Callable[[Any, AnswersOf], Answers] | None = None
    refuses: Callable[[Any, AnswersOf], str] | None = None
    empties: Callable[[Any, AnswersOf], str] | None = None
    imports: bool = False
    cleans: bool = False
    conserves: bool = False
    computes: Callable[[Any], bool] = with_models

    @property
    def adds_up(self) -> bool:
        """Whether the records that come in are those that go out or are dropped."""
        return self.conserves or bool(self.rows)

    @property
    def yields(self) -> str:
        """The outputs in words, as far as the type alone determines them."""
        if isinstance(self.outputs, PassesOn):
            kinds = {MAIN: "the kind of its input", **self.outputs.named}
        elif isinstance(self.outputs, Gives):
            kinds = {**self.outputs.kinds}
        else:
            return ""
        named = [f"{kind} ($stage.{name})" for name, kind in kinds.items() if name != MAIN]
        return ", ".join([*([kinds[MAIN]] if MAIN in kinds else []), *named])


def output_path(kind: str, name: str = MAIN) -> str:
    """The path of an output in the folder of its stage: a file of records, or the folder of a model."""
    if kind in ("model", "scorer"):
        return MODEL_FOLDER if name == MAIN else f"output/{name}"
    return RECORDS_FILE if name == MAIN else f"output/{name}.parquet"


def is_part_of(path: str, output: str) -> bool:
    """Whether a file of a stage's folder, by its path in it, belongs to a named output."""
    folder, _, below = path.partition("/")
    stem = below.partition("/")[0].partition(".")[0]
    return folder == "output" and (stem in ("records", "model") if output == MAIN else stem == output)
