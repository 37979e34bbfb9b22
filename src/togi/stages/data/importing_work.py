"""The work of `import`."""

from togi.core.records import KINDS
from togi.data.importing import DataSpec, Imported, load_records
from togi.stages.context import Context
from togi.stages.data.importing import Import
from togi.stages.table import takers


def read(settings: Import) -> Imported:
    """The records of a data set. Raises InputError for rows that do not fit, which says what stages would take them."""
    given = settings.model_dump(exclude={"type", "seed", "kind"})
    return load_records(DataSpec(**given, takers={kind: takers(kind) for kind in KINDS}), settings.kind)


def run(settings: Import, context: Context) -> None:
    imported = read(settings)
    context.drop_all(imported.drops)
    for note in imported.notes:
        context.log(note)
    context.summary |= {"columns_aside": imported.aside} if imported.aside else {}
    context.count_in(len(imported.records) + len(imported.drops))
    context.write(settings.kind, imported.records)
