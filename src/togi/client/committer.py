"""Commits the writes of an event loop's tasks: all writes that wait at one moment form one transaction."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from togi.client.store import SYNC_EVERY, StoreWriter

T = TypeVar("T")


class Committer:
    """Writes to the store at `path` for the tasks of one loop. A commit takes some 0.1 ms and runs in the loop, since
    handing it to a thread would cost more. Syncs wait for the disk, so they run in a thread."""

    def __init__(self, path: Path) -> None:
        self._writer = StoreWriter(path)
        self._loop = asyncio.get_running_loop()
        self._works: list[Callable[[sqlite3.Connection], Any]] = []
        self._group: asyncio.Task[list[Any]] | None = None
        self._synced = time.monotonic()
        self._syncing: asyncio.Future[None] | None = None

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Commits `work` and returns its result. Raises TogiError if the store cannot be written, and any error of a
        work that is committed together with this one."""
        if not self._works or self._group is None:
            self._group = self._loop.create_task(self._commit())
        place = len(self._works)
        self._works.append(work)
        return (await asyncio.shield(self._group))[place]  # shielded: others wait for the same commit

    async def _commit(self) -> list[Any]:
        works, self._works = self._works, []
        results = self._writer.commit(works)
        self._sync()
        return results

    def _sync(self) -> None:
        """Starts a sync of the commits, at most once per SYNC_EVERY seconds."""
        now = time.monotonic()
        if now - self._synced >= SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            self._synced = now
            self._syncing = self._loop.run_in_executor(None, self._writer.sync)

    async def close(self) -> None:
        """Commits pending work, waits for the last sync and closes the store."""
        if self._works:
            await self._commit()
        if self._syncing is not None:
            await self._syncing
        await self._loop.run_in_executor(None, self._writer.sync)
        self._writer.close()
