"""Declares the stage `import`: turns rows of a file, a folder or a hub data set into records. A recipe's `data:`
section makes these stages."""

import importlib
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from togi.core.settings import MAIN, HubId, RecipePath, Settings, runtime_setting
from togi.data.presets import PRESETS, Preset, known_preset
from togi.data.presets import REASONS as LEFT_OUT
from togi.data.values import REASONS
from togi.stages.base import StageSettings, StageType
from togi.stages.cost import Cost, Inputs, Known


class Expected(Settings):
    """Expected size of a hub data set that is not on this machine yet, for example from its publisher."""

    rows: int = runtime_setting(..., "number of rows that fit", ge=1)
    tokens: int | None = runtime_setting(None, "mean tokens per row", ge=1)
    longest: int | None = runtime_setting(None, "tokens of the longest row; the model's maximum when absent", ge=1)


class DataSettings(Settings):
    """Where rows come from, and how rows that do not fit are handled."""

    path: RecipePath | None = Field(
        default=None,
        description="a file of rows (.jsonl, .json, .csv, .tsv, .parquet; also compressed as .gz), a .txt file, "
        "or a folder",
    )
    hub: HubId | None = Field(default=None, min_length=1, description="id of a data set on a model hub")
    preset: str | None = Field(
        default=None,
        description="a public data set with known columns (docs/data.md); without path and hub it is read from the hub",
    )
    revision: str = Field(default="main", description="hub: commit, tag or branch")
    split: str = Field(
        default="train", description="hub: the split to read; train selects the preset's own training split"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="mapping from togi's column names to those of the file"
    )
    where: dict[str, Any] = Field(
        default_factory=dict,
        description="filter: column and the value, or list of values, that rows must have to be read",
    )
    licence: str = Field(default="", description="licence of the data, stored with every record")
    terms: str | None = Field(default=None, min_length=1, description="terms of the data besides its licence")
    inherit: bool = Field(
        default=False,
        description="licence and terms bind everything made from the data: records, models and their cards",
    )
    use: Literal["any", "training", "evaluation"] = runtime_setting(
        "any",
        "evaluation: nothing may be trained on the data or on anything made from it; training: "
        "nothing may be measured on it",
    )
    on_bad_row: Literal["error", "drop"] = Field(default="error", description="what to do with a row that does not fit")
    limit: int | None = Field(default=None, ge=1, description="read only the first rows that fit, up to this number")

    expect: Expected | None = runtime_setting(
        None, "hub: size that `togi plan` assumes for the data set while it is not on this machine"
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else known_preset(value)

    @model_validator(mode="after")
    def _says_what_binds(self) -> Self:
        if self.inherit and not any(self.says[:2]):
            raise ValueError("inherit: true needs `licence` or `terms`: name what binds everything made from the data")
        return self

    @model_validator(mode="after")
    def _expects_what_is_elsewhere(self) -> Self:
        if self.expect is not None and self.on_hub is None:
            raise ValueError("expect is only read with a hub data set, since files are counted; remove it")
        return self

    @property
    def on_hub(self) -> str | None:
        """The id of the data set on a hub; None for files."""
        preset = PRESETS[self.preset].hub if self.preset is not None and self.path is None else ""
        return self.hub or preset or None

    @property
    def says(self) -> tuple[str, str | None, bool]:
        """Licence, terms and whether they bind: from the recipe, else from the preset."""
        preset = Preset(needs=(), read=dict) if self.preset is None else PRESETS[self.preset]  # type: ignore[arg-type]
        return self.licence or preset.licence, self.terms or preset.terms, self.inherit or preset.inherit


class Import(DataSettings, StageSettings):
    """Turns rows in common formats into records of one kind, each with its source and licence."""

    type: Literal["import"] = "import"
    kind: str = Field(description="record kind to make: prompts, pairs, chats, documents or samples")

    @property
    def downloads(self) -> list[tuple[str, str]]:
        return [] if self.on_hub is None else [(self.on_hub, self.revision)]


def estimate(settings: Import, inputs: Inputs) -> Cost:
    """The number of records in the file. A hub data set is not read for the estimate."""
    if settings.path is None:
        return _expected(settings)
    records = importlib.import_module(WORK).read(settings, inputs.takers).records
    return Cost(records=len(records), outputs={MAIN: Known(records=len(records), samples=records)})


def _expected(settings: Import) -> Cost:
    """The size that the recipe expects of a hub data set."""
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
    version=4,
    reasons=(*REASONS, *LEFT_OUT),
    imports=True,
    conserves=True,
    estimate=estimate,
)
