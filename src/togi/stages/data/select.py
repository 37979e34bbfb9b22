"""Declares the stage `select`: selects a part of the records, to keep training, reward and evaluation prompts apart."""

from typing import Literal, Self

from pydantic import Field

from togi.core.settings import PromptsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs, passing_on


class Select(StageSettings):
    """Records `skip` to `skip + count` of the shuffled input. Selections of one input with disjoint ranges are disjoint
    if they have the same `seed`: by default the recipe's."""

    type: Literal["select"] = "select"
    input: PromptsRef
    skip: int = Field(default=0, ge=0, description="records to skip at the beginning")
    count: int | None = Field(
        default=None, ge=1, description="number of records to select; all remaining ones when absent"
    )
    system: str | None = Field(default=None, description="system turn for conversations without one")
    shuffle: bool = Field(
        default=True, description="shuffle the input first, identically for every selection with the same seed"
    )

    def limited(self, rows: int) -> Self:
        """Limits the selection to half of the rows, so that rows remain for a disjoint selection."""
        half = max(1, rows // 2)
        count = None if self.count is None else min(self.count, half)
        return self.model_copy(update={"count": count, "skip": min(self.skip, half)})

    def lacks(self, total: int) -> str:
        """Why `total` records are too few; empty if they are enough."""
        end = total if self.count is None else self.skip + self.count
        if end <= total and self.skip < total:
            return ""
        return (
            f"records {self.skip} to {end} are asked for, but {self.input} has only {total}; lower skip or count, or "
            "make more records upstream"
        )


def estimate(settings: Select, inputs: Inputs) -> Cost:
    """The records left after `skip`, at most `count`."""
    came = inputs[settings.input]
    if came.records is None:
        return passing_on(came, settings.count)
    left = max(0, came.records - settings.skip)
    return passing_on(came, min(left, settings.count or left))


STAGE = StageType(
    "select",
    Select,
    outputs=gives("prompts"),
    work="togi.stages.data.select_work",
    chooses=lambda settings: settings.input,
    lacks=Select.lacks,
    estimate=estimate,
)
