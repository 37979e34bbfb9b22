"""The context in which `togi check` prepares a stage that does not run: its records are held in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from togi.commands.check_rows import some
from togi.core.errors import InputError
from togi.core.records import Record
from togi.core.settings import Ref
from togi.stages.context import SHARD_ROWS, Context

MOST_ROWS = 10_000
"""Records rendered per data set; from a larger one this many, evenly spaced, and the longest."""


@dataclass(slots=True)
class Rehearsing(Context):
    """The context of a stage that does not run: its records are `held` in memory. If there are many, it gives a
    subset."""

    held: dict[str, Sequence[Record]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)

    def alarm(self, name: str, message: str, **fields: Any) -> None:
        self.alarms.append(f"{name}: {message}")

    def records(self, ref: Ref) -> list[Any]:
        records = self.held[ref]
        if not records:
            raise InputError(f"stage {self.name}: {ref} has no records")
        return some(records, MOST_ROWS)

    def batches(self, ref: Ref, rows: int = SHARD_ROWS, *, noted: bool = True) -> Iterator[list[Any]]:
        records = self.records(ref)
        return (records[start : start + rows] for start in range(0, len(records), rows))

    def records_count(self, ref: Ref) -> int:
        return len(self.records(ref))

    def contents(self, ref: Ref) -> None:
        """Returns None: the records are in memory."""

    def note_sources(self, ref: Ref) -> None:
        """Does nothing: nothing is made from these records."""
