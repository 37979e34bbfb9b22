"""Commits what the tasks of an event loop write: all that they want at one moment is one transaction."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from togi.client.store import SYNC_EVERY, StoreWriter
from togi.core.errors import TogiError

T = TypeVar("T")


class Committer:
    """Writes into the store at `path` for the tasks of one loop. Commits take some 0.1 ms and stand in the loop itself:
    a thread of their own costs more than they do. Syncs, which wait for the disk, have one."""

    def __init__(self, path: Path) -> None:
        self._writer = StoreWriter(path)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._synced = time.monotonic()
        self._syncing: asyncio.Future[None] | None = None

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `work`, once it is committed. Raises TogiError where the store cannot be written."""
        if not self._waiting:
            self._loop.call_soon(self._commit)
        future = self._loop.create_future()
        self._waiting.append((work, future))
        return await future

    def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            results = self._writer.commit([work for work, _ in waiting])
        except TogiError as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(waiting, results, strict=True):
            if not future.done():  # a task that was cancelled meanwhile
                future.set_result(result)
        self._sync()

    def _sync(self) -> None:
        """Starts to make safe from a power cut what was committed, once a second."""
        now = time.monotonic()
        if now - self._synced >= SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            self._synced = now
            self._syncing = self._loop.run_in_executor(None, self._writer.sync)

    async def close(self) -> None:
        """Waits for the last sync."""
        if self._waiting:
            self._commit()
        if self._syncing is not None:
            await self._syncing
        await self._loop.run_in_executor(None, self._writer.sync)
        self._writer.close()
