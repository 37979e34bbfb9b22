"""What a stage is.

A stage is two files: `x.py` declares its settings, what it yields and where its work lives; `x_work.py` does the work
and may import anything heavy.
"""

from dataclasses import dataclass

from pydantic import Field

from togi.core.settings import Settings, runtime_setting
from togi.core.sources import ModelSource

RECORDS_FILE = "output/records.parquet"
MODEL_FOLDER = "output/model"


class StageSettings(Settings):
    """Settings that every stage has."""

    type: str
    seed: int | None = Field(default=None, ge=0, description="seed of this stage; the recipe's when absent")

    def of_model(self, source: ModelSource) -> ModelSource:
        """A model from outside as this stage wants it, where the recipe leaves that open."""
        return source


class RankedSettings(StageSettings):
    """Settings of a stage whose work several processes can do together: all that train a model."""

    processes: int = runtime_setting(
        1, "processes that train together, each with its share of the weights and micro-batches", ge=1, le=1024
    )


@dataclass(frozen=True, slots=True)
class StageType:
    """A kind of stage. `version` goes up when the same settings give other bytes; `work` is a module with
    `run(settings, context)`; `yields` is what a reference to it means; `reasons` are all that a record can be dropped
    for."""

    name: str
    settings: type[StageSettings]
    yields: str
    work: str
    version: int = 1
    reasons: tuple[str, ...] = ()
