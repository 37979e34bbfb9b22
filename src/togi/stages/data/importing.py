"""`import`: rows from a file, a folder or a hub become records. A recipe's `data:` section makes these stages."""

import importlib
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.settings import MAIN, RecipePath, Settings, runtime_setting
from togi.data.presets import PRESETS, Preset, known_preset
from togi.data.presets import REASONS as LEFT_OUT
from togi.data.values import REASONS
from togi.stages.base import StageSettings, StageType
from togi.stages.cost import Cost, Inputs, Known


class Expected(Settings):
    """What is known of a set of a hub before it is on this machine, such as what its publisher says."""

    rows: int = runtime_setting(..., "rows that fit", ge=1)
    tokens: int | None = runtime_setting(None, "tokens of a row, on average", ge=1)
    longest: int | None = runtime_setting(
        None, "tokens of the longest row; as many as the model takes when absent", ge=1
    )


class DataSettings(Settings):
    """Where rows come from and what one that does not fit does."""

    path: RecipePath | None = Field(
        default=None, description="a file of rows (.jsonl, .json, .csv, .tsv, .parquet; .gz too), a .txt, or a folder"
    )
    hub: str | None = Field(default=None, min_length=1, description="a data set's id on a model hub")
    preset: str | None = Field(
        default=None, description="a public set whose columns are known (docs/data.md); alone it is read from the hub"
    )
    revision: str = Field(default="main", description="hub: commit, tag or branch")
    split: str = Field(default="train", description="hub: which split; train is the preset's own name of it")
    columns: dict[str, str] = Field(default_factory=dict, description="our name: the column's name in the file")
    where: dict[str, Any] = Field(
        default_factory=dict, description="column: the value, or a list of values, of the rows to read"
    )
    licence: str = Field(default="", description="licence of the data, kept with every record")
    terms: str | None = Field(default=None, min_length=1, description="what the data asks beside its licence")
    inherit: bool = Field(
        default=False, description="licence and terms bind everything made from the data: records, models, their cards"
    )
    use: Literal["any", "training", "evaluation"] = runtime_setting(
        "any",
        "evaluation: nothing may be trained on it, or on what is made from it; training: nothing is measured on it",
    )
    on_bad_row: Literal["error", "drop"] = Field(default="error", description="what a row that does not fit does")
    limit: int | None = Field(default=None, ge=1, description="read the first rows that fit, and no more")

    expect: Expected | None = runtime_setting(
        None, "hub: what `togi plan` takes the set to hold while it is not on this machine"
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else known_preset(value)

    @model_validator(mode="after")
    def _says_what_binds(self) -> Self:
        if self.inherit and not any(self.says[:2]):
            raise ValueError("inherit: true needs `licence` or `terms`: what binds everything that is made from it?")
        return self

    @model_validator(mode="after")
    def _expects_what_is_elsewhere(self) -> Self:
        if self.expect is not None and self.on_hub is None:
            raise ValueError("expect is read with a set of a hub alone: a file is counted; remove it")
        return self

    @property
    def on_hub(self) -> str | None:
        """The id of the data set on a hub; None for files."""
        preset = PRESETS[self.preset].hub if self.preset is not None and self.path is None else ""
        return self.hub or preset or None

    @property
    def says(self) -> tuple[str, str | None, bool]:
        """Licence and terms, and whether they bind: the recipe's words, else the preset's."""
        preset = Preset(needs=(), read=dict) if self.preset is None else PRESETS[self.preset]  # type: ignore[arg-type]
        return self.licence or preset.licence, self.terms or preset.terms, self.inherit or preset.inherit


class Import(DataSettings, StageSettings):
    """Rows in the shapes of the ecosystem -> records of one kind, each with its source and licence."""

    type: Literal["import"] = "import"
    kind: str = Field(description="record kind to make: prompts, pairs, chats, documents or samples")

    @property
    def downloads(self) -> list[tuple[str, str]]:
        return [] if self.on_hub is None else [(self.on_hub, self.revision)]


def estimate(settings: Import, inputs: Inputs) -> Cost:
    """What is in the file; a data set of a hub is not read for it."""
    if settings.path is None:
        return _expected(settings)
    records = importlib.import_module(WORK).read(settings, inputs.takers).records
    return Cost(records=len(records), outputs={MAIN: Known(records=len(records), samples=records)})


def _expected(settings: Import) -> Cost:
    """What the recipe says of a set of a hub."""
    if settings.expect is None:
        return Cost()
    rows = min(settings.expect.rows, settings.limit or settings.expect.rows)
    known = Known(records=rows, tokens=settings.expect.tokens, longest=settings.expect.longest)
    return Cost(records=rows, outputs={MAIN: known}, notes=["rows and lengths: as the recipe expects them"])


WORK = "togi.stages.data.importing_work"
STAGE = StageType(
    "import",
    Import,
    outputs=lambda settings: {MAIN: settings.kind},
    work=WORK,
    version=2,
    reasons=(*REASONS, *LEFT_OUT),
    imports=True,
    conserves=True,
    estimate=estimate,
)
