"""Runs an engine in its own thread, and passes its events to asyncio.

Reading an engine's events computes them, so only this thread touches the engine. Between two steps it adds new requests
and cancels those whose client disconnected.
"""

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from togi.core.errors import StageError, TogiError
from togi.core.protocols import Engine, Event, Request
from togi.core.records import Completion

READINGS = 4
"""The most readings at a time."""


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
        self.version: str | None = None
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, event: Event | None) -> None:
        with suppress(RuntimeError):  # the event loop has ended, so nobody reads
            self._loop.call_soon_threadsafe(self.inbox.put_nowait, event)


@dataclass(frozen=True, slots=True)
class _Update:
    """Work that needs an idle engine, after which the weights have a new version; `done` receives its outcome."""

    work: Callable[[], None]
    version: str | None
    done: "Future[None]"


@dataclass(frozen=True, slots=True)
class _Reading:
    """Work that uses the weights beside the engine; `begun` receives their version, and the work under way."""

    work: Callable[[], Any]
    begun: "Future[tuple[str | None, Future[Any]]]"


@dataclass(frozen=True, slots=True)
class Answers:
    """The completions of requests, the result of the reading that was asked for with them, and the version of the
    weights that computed both."""

    completions: list[list[Completion]]
    read: Any
    version: str | None


def _nothing(version: str | None) -> None: ...


class EngineLoop:
    """The engine's thread, from `start` to `stop`. `version` is that of the weights, None before the first update."""

    def __init__(self, engine: SteppingEngine) -> None:
        self.engine = engine
        self.ended = False
        self.version: str | None = None
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "engine")
        self._run_of_it: Future[None] | None = None
        self._orders: queue.SimpleQueue[tuple[str, _Reader] | _Update | _Reading | None] = queue.SimpleQueue()
        self._update: _Update | None = None
        self._readings_thread = ThreadPoolExecutor(READINGS, "readings")
        self._readings: list[Future[Any]] = []
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
        self._readings_thread.shutdown(cancel_futures=True)

    def raise_failure(self) -> None:
        """Raises the engine's error, if it failed."""
        if self._run_of_it is not None and self.ended:  # `ended` is set shortly before the thread finishes
            self._run_of_it.result()

    async def events(
        self, request: Request, seconds: float | None = None, tell: Callable[[str | None], None] = _nothing
    ) -> AsyncGenerator[Event, None]:
        """Yields the events of one request. Closing the generator early cancels the request. `tell` receives the
        version of the weights that compute the answer, before each event.

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
                tell(reader.version)
                yield event
        finally:
            self._waiting -= 1
            self._orders.put(("cancel", reader))

    async def update(self, work: Callable[[], None], version: str | None = None) -> None:
        """Runs `work`, which gives the engine weights of this version, in the engine's thread after the requests in
        progress; later requests wait for it. Raises the errors of `work`, and StageError if the engine has ended."""
        done: Future[None] = Future()
        await self._ordered(_Update(work, version, done), done)

    async def answers(self, requests: Sequence[Request], reading: Callable[[], Any] | None = None) -> Answers:
        """The completions of each request, in order, and the result of `reading`, which uses the same weights outside
        the engine; all are computed concurrently. Raises as `events` does."""
        for request in requests:
            self.engine.check(request)
        versions = [self.version]
        # their orders are put into the queue one right after the other, so that no update comes between them
        works = [self._answer(request, versions.append) for request in requests]
        *found, read = await asyncio.gather(*works, self._read(reading, versions.append))
        return Answers(found, read, versions[-1])

    async def _answer(self, request: Request, tell: Callable[[str | None], None]) -> list[Completion]:
        async with aclosing(self.events(request, tell=tell)) as events:
            found = {event.index: event.completion async for event in events if event.completion is not None}
        return [found[index] for index in range(request.params.n)]

    async def _read(self, reading: Callable[[], Any] | None, tell: Callable[[str | None], None]) -> Any:
        if reading is None:
            return None
        self._waiting += 1
        try:
            begun: Future[tuple[str | None, Future[Any]]] = Future()
            version, work = await self._ordered(_Reading(reading, begun), begun)
            tell(version)
            return await asyncio.wrap_future(work)
        finally:
            self._waiting -= 1

    async def _ordered(self, order: _Update | _Reading, done: "Future[Any]") -> Any:
        """Puts an order into the queue and waits for its outcome. Raises StageError if the engine has ended."""
        self._orders.put(order)
        if self.ended:  # checked after the put: an ended engine no longer reads its queue
            done.cancel()
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            if not self.ended:
                raise
            raise StageError("the engine has ended; see the server's log for the reason") from None

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
                    elif isinstance(order, _Reading):
                        order.begun.cancel()
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
            if isinstance(order, _Reading):
                self._begin(order)
            else:
                self._carry_out(*order)

    def _carry_out(self, what: str, reader: _Reader) -> None:
        """Adds the request of a reader to the engine, or cancels it."""
        if what == "add":
            reader.version = self.version
            reader.id = self.engine.add(reader.request)
            self._readers[reader.id] = reader
        elif reader.id is not None and self._readers.pop(reader.id, None) is not None:
            self.engine.cancel(reader.id)

    def _begin(self, reading: _Reading) -> None:
        """Begins a reading, which an update waits for."""
        if reading.begun.set_running_or_notify_cancel():
            self._readings = [each for each in self._readings if not each.done()]
            self._readings.append(self._readings_thread.submit(reading.work))
            reading.begun.set_result((self.version, self._readings[-1]))

    def _updated(self, update: _Update) -> bool:
        """Runs the work of an update unless requests are in progress; returns whether it ran. Waits for readings."""
        if self.engine.busy:
            return False
        wait(self._readings)
        self._update = None
        if update.done.set_running_or_notify_cancel():
            try:
                update.work()
            except TogiError as error:
                update.done.set_exception(error)
            else:
                self.version = update.version
                update.done.set_result(None)
        return True
