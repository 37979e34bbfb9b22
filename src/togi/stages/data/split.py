"""Declares the stage `split`: splits records into named parts, such as for training and testing."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator

from togi.core.settings import RecordsRef, Ref
from togi.stages.base import UNKNOWN, PassingSettings, StageType
from togi.stages.cost import Cost, Inputs, part_of

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
TAKEN = ("main", "records", "model")
"""Names already used by a stage's files and outputs."""

Part = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]


class Split(PassingSettings):
    """Splits records of any kind into named parts at random; records with equal prompts stay together."""

    of_data: ClassVar[str | None] = "prompts"

    type: Literal["split"] = "split"
    input: RecordsRef
    parts: dict[str, Part] = Field(
        min_length=1,
        description="name and size of each part; sizes are either all shares (0.9), which must sum to 1, or all "
        "counts (500), which may leave records over",
    )

    def limited(self, rows: int) -> Self:
        most = max(1, rows // (2 * len(self.parts)))
        parts = {name: min(size, most) if isinstance(size, int) else size for name, size in self.parts.items()}
        return self.model_copy(update={"parts": parts})

    def lacks(self, total: int) -> str:
        """Why `total` records are too few; empty if they are enough."""
        wanted = sum(size for size in self.parts.values() if isinstance(size, int))
        if wanted <= total:
            return ""
        return (
            f"the parts need {wanted} records, but {self.input} has only {total}; lower the counts, or make more "
            "records upstream"
        )

    @property
    def passes(self) -> Sequence[Ref]:
        return (self.input,)

    @field_validator("parts")
    @classmethod
    def _shares_or_counts(cls, value: dict[str, Part]) -> dict[str, Part]:
        for name in value:
            if not NAME.fullmatch(name) or name in TAKEN:
                rule = "a letter or _ first, then letters, digits, _ and -"
                raise ValueError(f"{name!r} cannot be the name of a part: {rule}; not {', '.join(TAKEN)}")
        shares = [size for size in value.values() if isinstance(size, float)]
        if shares and len(shares) < len(value):
            raise ValueError("some parts are shares (0.9) and some are counts (500); use only one of the two")
        if shares and not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
            raise ValueError(
                f"the shares sum to {sum(shares):.6g} but must sum to 1; add a part for the remaining records, or use "
                "counts"
            )
        return value


def estimate(settings: Split, inputs: Inputs) -> Cost:
    """A count is exact; a share is known when the input is known."""
    came = inputs[settings.input]
    cost = Cost(records=came.records, unknown=[came.why] if came.records is None else [])
    for name, size in settings.parts.items():
        most = size if isinstance(size, int) else None if came.records is None else math.ceil(size * came.records)
        cost.outputs[name] = part_of(came, most)
    return cost


STAGE = StageType(
    "split",
    Split,
    outputs=lambda settings: dict.fromkeys(settings.parts, settings.kind or UNKNOWN),
    work="togi.stages.data.split_work",
    version=2,
    conserves=True,
    reasons=("left_over",),
    chooses=lambda settings: settings.input,
    lacks=Split.lacks,
    estimate=estimate,
)
