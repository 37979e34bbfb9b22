"""Runs an engine in its own thread, and passes its events to asyncio.

Reading an engine's events computes them, so only this thread touches the engine. Between two steps it adds new requests
and cancels those whose client disconnected.
"""

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from togi.core.errors import StageError, TogiError
from togi.core.protocols import Engine, Event, Request
from togi.core.records import Completion


class SteppingEngine(Engine, Protocol):
    """An `Engine` that a server drives step by step."""

    @property
    def busy(self) -> bool: ...
    def check(self, request: Request, name: str = ...) -> None: ...
    def step(self) -> None: ...
    def ready(self, request: int) -> list[Event]: ...


class _Reader:
    """Receives the events of a request: an asyncio inbox, filled from the engine's thread."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.id: int | None = None
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, event: Event | None) -> None:
        with suppress(RuntimeError):  # the event loop has ended, so nobody reads
            self._loop.call_soon_threadsafe(self.inbox.put_nowait, event)


@dataclass(frozen=True, slots=True)
class _Update:
    """Work that needs an idle engine; `done` receives its outcome."""

    work: Callable[[], None]
    done: "Future[None]"


class EngineLoop:
    """The engine's thread, from `start` to `stop`."""

    def __init__(self, engine: SteppingEngine) -> None:
        self.engine = engine
        self.ended = False
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "engine")
        self._run_of_it: Future[None] | None = None
        self._orders: queue.SimpleQueue[tuple[str, _Reader] | _Update | None] = queue.SimpleQueue()
        self._update: _Update | None = None
        self._readers: dict[int, _Reader] = {}

    @property
    def waiting(self) -> int:
        """The number of requests without a complete answer."""
        return self._waiting

    def start(self, died: Callable[[], None] = lambda: None) -> None:
        """Starts the thread, which calls `died` if the engine fails."""
        self._run_of_it = self._thread.submit(self._run)
        self._run_of_it.add_done_callback(lambda ended: died() if ended.exception() is not None else None)

    def stop(self) -> None:
        """Ends the thread after the current step; unfinished requests get no answer."""
        self._orders.put(None)
        self._thread.shutdown()

    def raise_failure(self) -> None:
        """Raises the engine's error, if it failed."""
        if self._run_of_it is not None and self.ended:  # `ended` is set shortly before the thread finishes
            self._run_of_it.result()

    async def events(self, request: Request, seconds: float | None = None) -> AsyncGenerator[Event, None]:
        """Yields the events of one request. Closing the generator early cancels the request.

        Raises InputError for a request that can never be answered, StageError if the engine has failed, TimeoutError if
        the answer is incomplete after `seconds`.
        """
        self.engine.check(request)
        reader = _Reader(request)
        self._orders.put(("add", reader))
        if self.ended:  # checked after the put: an ended engine no longer reads its queue
            reader.put(None)
        left = request.params.n
        clock = asyncio.get_running_loop().time
        end = None if seconds is None else clock() + seconds
        self._waiting += 1
        try:
            while left:
                try:
                    async with asyncio.timeout_at(end):
                        event = await reader.inbox.get()
                    if end is not None and clock() > end:  # events may be ready at once if the client reads slowly
                        raise TimeoutError
                except TimeoutError:
                    late = f"no complete answer within {seconds:g} s; ask for fewer tokens, or raise --timeout"
                    raise TimeoutError(late) from None
                if event is None:
                    raise StageError("the engine has ended; see the server's log for the reason")
                left -= event.completion is not None
                yield event
        finally:
            self._waiting -= 1
            self._orders.put(("cancel", reader))

    async def update(self, work: Callable[[], None]) -> None:
        """Runs `work` in the engine's thread after the requests in progress; later requests wait for it. Raises the
        errors of `work`, and StageError if the engine has ended."""
        done: Future[None] = Future()
        self._orders.put(_Update(work, done))
        if self.ended:
            done.cancel()
        try:
            await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            if not self.ended:
                raise
            raise StageError("the engine has ended; see the server's log for the reason") from None

    async def answers(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The completions of each request, in order; all are computed concurrently. Raises as `events` does."""
        for request in requests:
            self.engine.check(request)
        return await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Request) -> list[Completion]:
        async with aclosing(self.events(request)) as events:
            found = {event.index: event.completion async for event in events if event.completion is not None}
        return [found[index] for index in range(request.params.n)]

    # --- in the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._heed():
                self.engine.step()
                for name, reader in self._readers.items():
                    for event in self.engine.ready(name):
                        reader.put(event)
        finally:
            self.ended = True
            with suppress(queue.Empty):
                while True:
                    order = self._orders.get(block=False)
                    if isinstance(order, _Update):
                        order.done.cancel()
                    elif order is not None:
                        order[1].put(None)
            for reader in self._readers.values():
                reader.put(None)

    def _heed(self) -> bool:
        """Carries out the orders that arrived, and waits while there is nothing to compute. Returns False to end."""
        while True:
            if self._update is not None and not self._updated(self._update):
                return True
            try:
                order = self._orders.get(block=not self.engine.busy)
            except queue.Empty:
                return True
            if order is None:
                return False
            if isinstance(order, _Update):
                self._update = order
                continue
            what, reader = order
            if what == "add":
                reader.id = self.engine.add(reader.request)
                self._readers[reader.id] = reader
            elif reader.id is not None and self._readers.pop(reader.id, None) is not None:
                self.engine.cancel(reader.id)

    def _updated(self, update: _Update) -> bool:
        """Runs the work of an update unless requests are in progress; returns whether it ran."""
        if self.engine.busy:
            return False
        self._update = None
        if update.done.set_running_or_notify_cancel():
            try:
                update.work()
            except TogiError as error:
                update.done.set_exception(error)
            else:
                update.done.set_result(None)
        return True
