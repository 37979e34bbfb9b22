"""An event loop in its own thread, for clients with synchronous callers."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """An event loop that runs from the first `start` until `end`, in a thread called `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> asyncio.AbstractEventLoop:
        """Starts the loop if needed, and returns it."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self.loop.run_forever, name=self._name, daemon=True)
            self._thread.start()
        return self.loop

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Runs `work` in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.start())

    def end(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancels all tasks, runs `last` and ends the loop."""
        loop, thread = self.loop, self._thread
        if loop is None or thread is None:
            last.close()
            return
        asyncio.run_coroutine_threadsafe(_wind_up(last), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        self.loop = None


async def _wind_up(last: Coroutine[Any, Any, None]) -> None:
    await cancel_others()
    await last


async def cancel_others() -> None:
    """Cancels all other tasks of the running loop and waits until they have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
