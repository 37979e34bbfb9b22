"""Computes the largest number of records in each output of a stage that chooses among records, before any exist."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from togi.core.settings import Ref
from togi.stages.base import StageSettings, StageType
from togi.stages.cost import Cost, Known


@dataclass(frozen=True, slots=True)
class _Counted:
    """The inputs of a stage of which only the number of records is known (stages/cost.py)."""

    records: int

    @property
    def takers(self) -> Mapping[str, Sequence[str]]:
        return {}

    def __getitem__(self, ref: Ref, /) -> Known:
        return Known(records=self.records)

    def lengths(self, refs: Sequence[Ref], model: Known, cost: Cost) -> None:
        """Returns None: no record is known."""


def most_of(kind: StageType, settings: StageSettings, records: int) -> dict[str, int]:
    """The largest number of records in each output of a stage that chooses among `records`."""
    outputs = dict.fromkeys(kind.outputs(settings), records)
    if kind.lacks is None or kind.estimate is None:
        return outputs
    found = kind.estimate(settings, _Counted(records)).outputs
    return outputs | {name: known.records for name, known in found.items() if known.records is not None}
