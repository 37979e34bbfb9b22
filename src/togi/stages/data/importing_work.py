"""The work of `import`."""

from collections.abc import Mapping, Sequence

from togi.data.importing import DataSpec, Imported, load_records
from togi.data.presets import PRESETS
from togi.stages.context import Context
from togi.stages.data.importing import Import


def read(settings: Import, takers: Mapping[str, Sequence[str]]) -> Imported:
    """The records of a data set. `takers` are the stage types that take each kind of records.

    Raises InputError for rows that do not fit, which says what stages would take them.
    """
    given = settings.model_dump(exclude={"type", "seed", "kind", "use"})
    given["licence"], given["terms"], given["inherit"] = settings.says
    if settings.preset is not None and settings.split == "train":
        given["split"] = PRESETS[settings.preset].split
    return load_records(DataSpec(**given, takers=takers), settings.kind)


def run(settings: Import, context: Context) -> None:
    imported = read(settings, context.takers)
    context.drop_all(imported.drops)
    for note in imported.notes:
        context.log(note)
    context.summary |= {"columns_aside": imported.aside} if imported.aside else {}
    context.count_in(len(imported.records) + len(imported.drops))
    context.write(settings.kind, imported.records)
