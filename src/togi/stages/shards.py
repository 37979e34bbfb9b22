"""Row-wise work: a stage that maps each row independently does so shard by shard.

A shard is SHARD_ROWS consecutive rows, counted from the first, so the data alone determine it. The runner decides which
processes do the shards (`ShardExecutor`); the bytes do not depend on that. Therefore the mapping code computes with one
thread, and uses only its settings and the shard.

`rows` of such a stage's type names a module without heavy imports, with `map_rows(settings, shard)` or `value_of`.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from togi.core.codec import to_row
from togi.core.record_streams import read_range
from togi.stages.sources import Descent

SHARD_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows of one shard. `stage` is the stage's name, `producer` the input of the ids of new records, `number` counts
    shards from 0."""

    records: Sequence[Any]
    stage: str
    producer: str
    seed: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard to be done, as plain values: `rows` is the mapping module, `settings_class` is "module:class", `source`
    the file of the records, of which the shard is `count` records from `first` on.

    With `more`, the result of the shard is not records: the module has `value_of(settings, shard, more)` instead.
    `threads` are those that it computes with. `device` is that of its model, as in a recipe (empty: a card if there is
    one); a shard without a model uses no card."""

    rows: str
    settings_class: str
    settings: dict[str, Any]
    stage: str
    producer: str
    seed: int
    source: str
    number: int
    first: int
    count: int
    more: dict[str, Any] | None = None
    threads: int = 1
    device: str = "cpu"


class ShardExecutor(Protocol):
    """Does shards. The values come in the order of the tasks, whichever is done first.

    `apart`: other processes do them. Raises the TogiError that a shard raised, and WorkerDied if processes keep dying
    on the same shard.
    """

    @property
    def apart(self) -> bool: ...

    def values(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]: ...


class SerialShards:
    """Does shards one after the other, in this process."""

    apart = False

    def values(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        return map(do_shard, tasks)


def do_shard(task: ShardTask) -> dict[str, Any]:
    """The value of a shard's unit: `kept` as rows of the codec, `dropped` as [id, reason]; or what `value_of` gives."""
    module, _, name = task.settings_class.partition(":")
    settings = getattr(importlib.import_module(module), name).model_validate(task.settings)
    records = read_range(Path(task.source), task.first, task.count)
    shard = Shard(records=records, stage=task.stage, producer=task.producer, seed=task.seed, number=task.number)
    rows = importlib.import_module(task.rows)
    if task.more is not None:
        return rows.value_of(settings, shard, task.more)
    kept, drops = rows.map_rows(settings, shard)
    descent = Descent()
    descent.note(records)
    return {
        "kept": [to_row(record) for record in descent.given(kept)],
        "dropped": [[drop.id, drop.reason] for drop in drops],
    }
