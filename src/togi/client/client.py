"""The client: requests in, answers out in their order, many under way at once, every answer stored before it is used.

    with AnswerStore(path) as store, Client(endpoint, store, run=run_id) as client:
        for request, answer in zip(requests, client.ask(requests)):
            ...

A result is an answer or a `Failure`. What would befall every request ends the call with one error: InputError for a
server that is not there, a wrong key, a model that it does not serve; StageError for a spent budget, a sustained 429,
a server that has gone. All answers that came until then stay stored.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from togi.client.accounts import Account, Spending
from togi.client.answers import Answer, Failure, Scores, Whole, dump, load
from togi.client.background import Background
from togi.client.batches import Batches
from togi.client.endpoint import Endpoint, Tokens
from togi.client.exchange import Counter, Exchange
from togi.client.probe import Abilities, endpoint_facts, meet, on_bf16_steps
from togi.client.requests import AnyRequest, Generation, request_key, single
from togi.client.store import AnswerStore, Name, keep_answer, read_answer
from togi.client.troubles import STORED
from togi.core.errors import Interrupted, StageError, TogiError

AHEAD = 4
"""Requests that are taken ahead of the one whose answer is due, as a multiple of those under way."""
LISTEN = 0.1
"""Seconds between looks at whether the run is to stop."""
MANY, GATHER = 16, 0.005
"""With so many requests under way a caller who waits is told of answers after so many seconds."""
FAILURES = 32
"""Requests in a row without an answer, at least, after which a run ends."""
JUDGED_SCORES = 16
BATCH_REQUESTS = 10_000
"""Requests of one batch at most; OpenAI takes 50,000 and 200 MB."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """What a client has done: answers that it got, that were stored before, and requests that failed."""

    answered: int = 0
    stored: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Place:
    """Where the result of a request will be. `done` is set last, by the event loop."""

    request: AnyRequest
    name: Name
    done: bool = False
    result: Whole | Failure | None = None
    error: BaseException | None = None
    task: "asyncio.Task[Whole | Failure] | None" = None
    unwanted: bool = False

    def cancel(self) -> None:
        """Ends the request, or never begins it."""
        self.unwanted = True
        if self.task is not None:
            self.task.cancel()


def _nothing() -> None: ...


def _log_alarm(name: str, message: str) -> None:
    log.warning("%s: %s", name, message)


class Client:
    """Asks one endpoint for one run. `run` is the id under which its budget is kept, across kills. `count` gives the
    prompt tokens of a request for reservations; its bytes are taken without one. `tell` takes alarms; `check` is called
    while the client waits, and may raise to stop.

    The server is first asked when an answer is not in the store; only then is the key read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: AnswerStore,
        *,
        run: str,
        count: Counter | None = None,
        tell: Callable[[str, str], None] = _log_alarm,
        check: Callable[[], None] = _nothing,
    ) -> None:
        self.endpoint, self.store = endpoint, store
        self.account = Account(run, endpoint.name, endpoint.budget, endpoint.price)
        self.progress = Progress()
        self._count, self._tell, self._check = count, tell, check
        self._background = Background("togi-client")
        self.exchange: Exchange | None = None
        self._abilities: Abilities | None = None
        self._pending: dict[Name, _Place] = {}
        self._inbox: deque[_Place] = deque()
        self._woken = False
        self._awaited: _Place | None = None
        self._news = threading.Event()
        self._in_a_row = 0
        self._scores: list[float] = []

    # --- asking -------------------------------------------------------------------------------------------------------

    def ask(self, requests: Iterable[AnyRequest]) -> Iterator[Any]:
        """The result of each request, in their order: an `Answer` of a chat or completion, `Scores`, `Vectors`, or a
        `Failure`. Requests are taken as they are needed, a bounded number ahead.

        Raises TogiError where no further request can be answered; what is under way is stored first.
        """
        if self.endpoint.batch:
            yield from self._ask_batches(requests)
            return
        window: deque[_Place] = deque()
        ahead = AHEAD * self.endpoint.concurrency
        try:
            for request in requests:
                window.append(self._place(request))
                while window and (window[0].done or len(window) >= ahead):
                    yield self._result(window.popleft())
            while window:
                yield self._result(window.popleft())
        except TogiError:
            self._drain(window)
            raise
        finally:
            self._cancel(window)

    def _ask_batches(self, requests: Iterable[AnyRequest]) -> Iterator[Whole | Failure]:
        """`ask` through the provider's batch endpoint, many requests at a time."""
        source = iter(requests)
        while chunk := list(islice(source, BATCH_REQUESTS)):
            names = [self._name(request) for request in chunk]
            asked = {name: each for name, each in zip(names, chunk, strict=True) if self.store.get(name) is None}
            self.progress.stored += len(names) - len(asked)
            failed = self._batch(asked) if asked else {}
            self.progress.answered += len(asked) - len(failed)
            self.progress.failed += len(failed)
            for name in names:
                body = self.store.get(name)
                yield failed[name] if body is None else load(body)

    def _batch(self, asked: dict[Name, AnyRequest]) -> dict[Name, Failure]:
        """Has requests answered by batches; returns those that failed."""
        self._start()
        assert self.exchange is not None
        work = self._background.submit(self._answer_batch(self.exchange, asked))
        try:
            while not work.done():
                self._check()
                wait([work], LISTEN)
            return work.result()
        finally:
            work.cancel()

    async def _answer_batch(self, exchange: Exchange, asked: dict[Name, AnyRequest]) -> dict[Name, Failure]:
        await meet(exchange)
        return await Batches(exchange).answer(asked)

    def spending(self) -> Spending:
        """What the run has spent on this endpoint so far, killed processes included."""
        return self.store.spending(self.account)

    def facts(self) -> dict[str, Any]:
        """What was learned of the server, for reports; empty while it was not asked."""
        return {} if self._abilities is None else endpoint_facts(self._abilities, self.endpoint)

    def close(self) -> None:
        """Ends what is under way; it stays charged. The store stays open."""
        self._background.end(self._end())

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the caller's thread ------------------------------------------------------------------------------------------

    def _name(self, request: AnyRequest) -> Name:
        return request_key(request, self.endpoint.model, self.endpoint.revision), request.index

    def _place(self, request: AnyRequest) -> "_Place":
        """A place with the stored answer to a request, or where it will be. Equal requests under way share one."""
        name = self._name(request)
        if (pending := self._pending.get(name)) is not None:
            return pending
        if (body := self.store.get(name)) is not None:
            self.progress.stored += 1
            return _Place(request, name, done=True, result=load(body))
        loop = self._start()
        place = self._pending[name] = _Place(request, name)
        self._inbox.append(place)
        if not self._woken:
            self._woken = True
            loop.call_soon_threadsafe(self._take_in)
        return place

    def _result(self, place: "_Place") -> Whole | Failure:
        """What came of a request. Raises what ended it."""
        while not place.done:
            self._check()
            self._awaited = place
            if not place.done:
                self._news.wait(LISTEN)
                self._news.clear()
        if place.error is not None:
            raise place.error
        assert place.result is not None
        return self._watch(place.result)

    def _watch(self, result: Whole | Failure) -> Whole | Failure:
        """Sounds the alarm on scores that were rounded."""
        if isinstance(result, Scores) and len(self._scores) < JUDGED_SCORES:
            self._scores += [score for score in result.scores if isinstance(score, float)]
            if len(self._scores) >= JUDGED_SCORES and on_bf16_steps(self._scores):
                self._tell(
                    "rounded_scores",
                    f"model {self.endpoint.name}: all scores lie on the steps of bfloat16, so near ones tie; serve the "
                    "reward model in float32",
                )
        return result

    def _drain(self, window: Iterable["_Place"]) -> None:
        """Waits for what is under way, so that it is stored."""
        for place in window:
            with suppress(TogiError):
                self._result(place)

    def _cancel(self, window: Iterable["_Place"]) -> None:
        """Ends the requests of a caller who is gone."""
        left = [place for place in window if not place.done]
        loop = self._background.loop
        if loop is not None and left:
            loop.call_soon_threadsafe(lambda: [place.cancel() for place in left])

    def _start(self) -> asyncio.AbstractEventLoop:
        """The event loop, in a thread of its own."""
        if self._background.loop is None:
            try:
                self._background.submit(self._open()).result()
            except TogiError:  # no key, no store
                self.close()
                raise
        return self._background.start()

    # --- the event loop -----------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Starts what has been asked since the last time."""
        loop = asyncio.get_running_loop()
        self._woken = False
        while self._inbox:
            place = self._inbox.popleft()
            if place.unwanted:
                self._pending.pop(place.name, None)
                continue
            place.task = loop.create_task(self._answer(place.request, place.name))
            place.task.add_done_callback(partial(self._over, place))

    def _over(self, place: "_Place", task: "asyncio.Task[Whole | Failure]") -> None:
        """Puts what came of a request into its place."""
        if task.cancelled():
            place.error = Interrupted(f"model {self.endpoint.name}: the request was cancelled")
        elif (error := task.exception()) is not None:
            place.error = error
        else:
            place.result = task.result()
        self._pending.pop(place.name, None)
        place.done = True
        if self._awaited is place:
            self._awaited = None
            self._tell_caller()

    def _tell_caller(self) -> None:
        """Wakes the caller: with many under way only every few milliseconds, since each change of threads costs more
        than an answer does."""
        if len(self._pending) < MANY:
            self._news.set()
        else:
            asyncio.get_running_loop().call_later(GATHER, self._news.set)

    async def _end(self) -> None:
        """Closes what the requests used."""
        if self.exchange is not None:
            await self.exchange.close()

    async def _open(self) -> None:
        self.exchange = Exchange(self.endpoint, self.account, self.store.path, self._count)
        self._abilities = Abilities(self.exchange, self._tell)

    async def _answer(self, request: AnyRequest, name: Name) -> Whole | Failure:
        """What becomes of one request. What ends it for all ends it for all."""
        assert self.exchange is not None and self._abilities is not None
        try:
            await self._abilities.learn(request)
            if isinstance(request, Generation) and self._abilities.singly(request):
                found = await self._singly(self.exchange, request, name)
            else:
                found = await self.exchange.ask(request, name)
        except TogiError as error:
            raise self.exchange.end(error) from None
        return self._counted(self.exchange, found)

    def _counted(self, exchange: Exchange, found: Whole | Failure) -> Whole | Failure:
        if not isinstance(found, Failure):
            self.progress.answered += 1
            self._in_a_row = 0
            return found
        self.progress.failed += 1
        self._in_a_row += 1
        log.warning("model %s: a request failed (%s): %s", self.endpoint.name, found.reason, found.message)
        if self._in_a_row >= max(FAILURES, self.endpoint.concurrency):
            raise exchange.end(
                StageError(
                    f"model {self.endpoint.name}: {self._in_a_row} requests in a row failed, the last one so: "
                    f"{found.message}; {STORED}"
                )
            )
        return found

    async def _singly(self, exchange: Exchange, request: Generation, name: Name) -> Whole | Failure:
        """The choices of a request, asked for one by one, and stored once more together."""
        parts = await asyncio.gather(*(self._part(exchange, single(request, i)) for i in range(request.params.n)))
        choices, usage = [], Tokens()
        for part in parts:
            if not isinstance(part, Answer):
                return part
            choices += part.choices
            usage += part.usage
        whole = Answer(choices=tuple(choices), usage=usage)
        await exchange.write(lambda db: keep_answer(db, name, exchange.label, dump(whole)))
        return whole

    async def _part(self, exchange: Exchange, request: Generation) -> Whole | Failure:
        name = self._name(request)
        stored = await exchange.write(lambda db: read_answer(db, name))
        return await exchange.ask(request, name) if stored is None else load(stored)
