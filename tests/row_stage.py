"""A row-wise stage that needs no model: its rows decide what the process that maps them does."""

import os
import signal
import time
from pathlib import Path

from togi.core.errors import InputError
from togi.core.records import Document, Drop
from togi.stages.base import RowSettings
from togi.stages.shards import Shard


class Toy(RowSettings):
    """`folder` is where a process records that it was killed once."""

    type: str = "toy"
    folder: str = ""


def map_rows(settings: Toy, shard: Shard) -> tuple[list[Document], list[Drop]]:
    """Keeps odd texts in capitals; drops the even ones."""
    texts = [record.text for record in shard.records]
    if "wait" in texts:
        time.sleep(0.5)
    if "bad" in texts:
        raise InputError(f"row {texts.index('bad')} is bad")
    if "large" in texts:
        raise MemoryError("cannot allocate memory")
    if "deadly" in texts:
        os.kill(os.getpid(), signal.SIGKILL)
    mark = Path(settings.folder) / f"killed-{shard.number}"
    if "deadly once" in texts and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    kept = [Document(id=r.id, text=f"{r.text.upper()} {os.environ.get('SHARD_SAYS', '')}") for r in shard.records]
    dropped = [Drop(id=r.id, stage=shard.stage, reason="even") for r in kept[::2]]
    return kept[1::2], dropped
