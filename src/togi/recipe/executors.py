"""The interface of executors, which do the stages of a run.

`Workers` (recipe/workers.py) does stages in processes on this machine, one in all or one per rank. `SerialShards` and
`PoolShards` do shards of row-wise stages. On a cluster `RayShards` (recipe/cluster_shards_work.py) does them, and
`RayModels` (recipe/cluster_models_work.py) those that a local model computes. All give the same bytes.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from togi.stages.shards import ShardExecutor as ShardExecutor


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
