"""The findings of `togi check` about a data set from outside: rows that fit, rows that are dropped, the first
record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from togi.core.records import Chat
from togi.data.importing import Imported

SHOWN = 160  # characters of the first record


@dataclass(frozen=True, slots=True)
class DataCheck:
    """The number of rows that fit, those dropped and why, the first record, and notes of the import."""

    kind: str
    records: int
    drops: dict[str, int]
    first: str
    notes: tuple[str, ...] = ()


def checked_data(kind: str, imported: Imported) -> DataCheck:
    """The findings about a data set that was read as records of `kind`."""
    return DataCheck(
        kind, len(imported.records), dict(imported.dropped), _first(imported.records), tuple(imported.notes)
    )


def _first(records: Sequence[Any]) -> str:
    """The first record's text on one line, with all turns of a conversation."""
    record = records[0]
    turns = record.messages if isinstance(record, Chat) else ()
    text = " / ".join(f"{turn.role}: {turn.content}" for turn in turns) or record.text
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} …"
