"""Row-wise stages: runs shards through the runner's executor; kept records and drops come back in row order."""

from collections.abc import Iterator
from typing import Any

from togi.core.codec import from_row
from togi.core.settings import Ref
from togi.stages.base import StageSettings, StageType
from togi.stages.context import Context
from togi.stages.shards import SHARD_ROWS, ShardTask


def map_shards(stage: StageType, settings: StageSettings, context: Context, ref: Ref, kind: str) -> Iterator[list[Any]]:
    """Yields the records of kind `kind` that `map_rows` keeps of `ref`, shard by shard. Counts the input records and
    notes the drops. A shard is a unit of the journal. Raises InputError if there are no records."""
    total = context.records_count(ref)
    context.count_in(total)
    count = -(-total // SHARD_ROWS)
    missing = context.missing_units(count, UNIT)
    values = context.shards.values([shard_task(stage, settings, context, ref, number) for number in missing])
    for value in context.stream_units(count, lambda number: next(values), UNIT):
        for name, reason in value["dropped"]:
            context.drop(name, reason)
        kept = [from_row(kind, row) for row in value["kept"]]
        context.note(kept, ref)
        yield kept


UNIT = "shard"


def shard_task(
    stage: StageType,
    settings: StageSettings,
    context: Context,
    ref: Ref | None,
    number: int,
    more: dict[str, Any] | None = None,
) -> ShardTask:
    """Shard `number` of the records of `ref` (None: of others, to be named), for the module that the type names; `more`
    is for its `value_of`."""
    cls = type(settings)
    return ShardTask(
        rows=stage.rows or stage.model_rows,
        settings_class=f"{cls.__module__}:{cls.__qualname__}",
        settings=settings.model_dump(mode="json"),
        stage=context.name,
        producer=context.folder.name,
        seed=context.seed,
        source="" if ref is None else str(context.records_file(ref)),
        number=number,
        first=number * SHARD_ROWS,
        count=SHARD_ROWS,
        more=more,
    )
