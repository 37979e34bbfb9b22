"""A process that does shards: one JSON line in, one JSON line out. It ends when its input closes.

Output that a library prints goes to standard error.
"""

import json
import os
import sys
from typing import Any

from togi.core.errors import RecordError, kind_name
from togi.recipe.faults import TOLD, told
from togi.stages.shards import ShardTask, do_shard


def main() -> None:
    """Does shards until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        if not line.endswith("\n"):
            break  # the parent died in the middle of a line
        answers.write(json.dumps(answer(ShardTask(**json.loads(line)))) + "\n")


def answer(task: ShardTask) -> dict[str, Any]:
    """Does a shard; returns its `value`, or the `kind` and `message` of the error that it raised, with
    the id of a `record` that cannot be used."""
    try:
        return {"value": do_shard(task)}
    except TOLD as error:
        failure = told(error, {"name": task.stage, "settings": task.settings})
        if failure is None:
            raise
        record = {"record": error.record} if isinstance(error, RecordError) else {}
        return {"kind": kind_name(failure), "message": str(failure).removeprefix(f"stage {task.stage}: "), **record}


if __name__ == "__main__":
    main()
