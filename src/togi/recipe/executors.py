"""The interface of executors, which do the stages of a run.

`Workers` (recipe/workers.py) does stages in processes on this machine, one in all or one per rank. `SerialShards` and
`PoolShards` do shards of row-wise stages. On a cluster `RayShards` (recipe/cluster_shards_work.py) does them, and
`RayModels` (recipe/cluster_models_work.py) those that a local model computes. `RowsAndModels` are two of them, for a
stage with both kinds of shards. All give the same bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from togi.stages.shards import ShardExecutor as ShardExecutor
from togi.stages.shards import ShardTask


class Executor(Protocol):
    """Does stages, one after the other, each in `size` processes."""

    size: int

    def do(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Does the stage of `command` and yields its events; the last one is `done` or `failed`. Raises WorkerDied if
        it ends without a message, and Fault for an unexpected exception."""
        ...

    def stop(self) -> None:
        """Asks the stage to finish and save its current unit, then stop."""
        ...

    def kill(self) -> None:
        """Ends the work at once; finished work is saved already."""
        ...

    def close(self) -> None:
        """Ends all processes."""
        ...


@dataclass(frozen=True, slots=True)
class RowsAndModels:
    """The `ShardExecutor` of a stage of which some shards need a model: `models` does those, `rows` the others."""

    rows: ShardExecutor
    models: ShardExecutor

    @property
    def apart(self) -> bool:
        """Whether other processes do the shards that a model computes."""
        return self.models.apart

    def values(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        """The values of the tasks, all of one kind, in their order."""
        of_models = any("model" in (task.more or {}) for task in tasks[:1])
        return (self.models if of_models else self.rows).values(tasks)
