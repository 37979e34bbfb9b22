"""Who does the work of a run: stages, and the shards of row-wise stages.

`Workers` (recipe/workers.py) does stages in processes of this machine, one or one a rank; `SerialShards` and
`PoolShards` do shards, `RayShards` (recipe/cluster_shards_work.py) on a cluster. All give the same bytes.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from togi.stages.shards import ShardExecutor as ShardExecutor


class Executor(Protocol):
    """Does stages, one after the other; `size` processes do each of them."""

    size: int

    def do(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Does the stage of `command` and yields what it tells; the last event is `done` or `failed`. Raises WorkerDied
        where it ends without a word, and Fault for an exception that nobody expected."""
        ...

    def stop(self) -> None:
        """Lets the work at hand be finished and saved."""
        ...

    def kill(self) -> None:
        """Ends the work at once; what is finished is saved."""
        ...

    def close(self) -> None:
        """Lets go of all processes."""
        ...
