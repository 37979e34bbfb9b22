"""The work of `import`: reads the rows of a data set as records, and finds the row of a record again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from togi.core.aside import Aside
from togi.core.codec import from_row, to_row
from togi.data.importing import DataSpec, Imported, place_of, pour_records
from togi.data.presets import PRESETS
from togi.stages.context import Context
from togi.stages.data.importing import Import


def read(settings: Import, takers: Mapping[str, Sequence[str]]) -> Imported:
    """Returns the records of a data set and only counts of its drops; large data sets are kept on disk. `takers` maps
    each record kind to the stage types that accept it.

    Raises InputError for rows that do not fit; the message names the stages that would accept them.
    """
    records: Aside[Any] = Aside(to_row, lambda row: from_row(settings.kind, row))
    imported = pour_records(
        _spec(settings, takers), settings.kind, lambda record: records.add([record]), lambda drop: None
    )
    return replace(imported, records=records)


def row_of(settings: Import, record: str) -> str:
    """The place (file:line, or file and row) of the row that became the record with this id; empty if no row did.
    Raises InputError if the files cannot be read."""
    return place_of(_spec(settings, {}), settings.kind, record)


def _spec(settings: Import, takers: Mapping[str, Sequence[str]]) -> DataSpec:
    given = settings.model_dump(exclude={"type", "seed", "kind", "use", "expect"})
    given["licence"], given["terms"], given["inherit"] = settings.says
    if settings.preset is not None and settings.split == "train":
        given["split"] = PRESETS[settings.preset].split
    return DataSpec(**given, takers=takers)


def run(settings: Import, context: Context) -> None:
    with context.writer(settings.kind) as writer:
        imported = pour_records(
            _spec(settings, context.takers),
            settings.kind,
            lambda record: writer.write([record]),
            lambda drop: context.drop(drop.id, drop.reason),
        )
    for note in imported.notes:
        context.log(note)
    wanted = None if settings.expect is None or settings.limit is not None else settings.expect.rows
    if wanted not in (None, writer.count):
        context.log(f"{writer.count:,} rows fit, but the recipe expects {wanted:,} (expect: rows)")
    context.summary |= {"columns_aside": imported.aside} if imported.aside else {}
    context.count_in(writer.count + imported.dropped.total())
