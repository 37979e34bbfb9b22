"""The work of `import`."""

from togi.data.border import DataSpec, load_records
from togi.stages.base import Context
from togi.stages.imported import Import


def run(settings: Import, context: Context) -> None:
    spec = DataSpec(**settings.model_dump(exclude={"type", "seed", "kind"}))
    imported = load_records(spec, settings.kind)
    for drop in imported.drops:
        context.drops.append(drop)
    context.counts["in"] = len(imported.records) + len(imported.drops)
    context.write(settings.kind, imported.records)
