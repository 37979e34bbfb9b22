"""The client: sends many requests at once, yields answers in order, and stores every answer before it is used.

    with AnswerStore(path) as store, Client(endpoint, store, run=run_id) as client:
        for request, answer in zip(requests, client.ask(requests)):
            ...

A result is an answer or a `Failure`. A problem that would hit every request ends the call with one error: InputError
if the server cannot be reached, the key is wrong, or the model is not served; StageError if the budget is spent, 429
replies persist, or the server goes down. All answers received until then stay stored.
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
"""Requests read ahead of the one whose answer is due, as a multiple of `concurrency`."""
LISTEN = 0.1
"""Seconds between checks of whether the run should stop."""
MANY, GATHER = 16, 0.005
"""With at least MANY requests in flight, a waiting caller is woken only GATHER seconds after an answer."""
FAILURES = 32
"""Failed requests in a row after which a run ends; more if `concurrency` is larger."""
JUDGED_SCORES = 16
"""Scores after which togi looks, once, whether all are rounded to bfloat16."""
BATCH_REQUESTS = 10_000
"""The most requests in one batch; OpenAI accepts 50,000 and 200 MB."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """Counts of a client: answers received, answers already stored, and failed requests."""

    answered: int = 0
    stored: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Place:
    """Holds the result of a request once it is known. The event loop sets `done` last."""

    request: AnyRequest
    name: Name
    done: bool = False
    result: Whole | Failure | None = None
    error: BaseException | None = None
    task: "asyncio.Task[Whole | Failure] | None" = None
    unwanted: bool = False

    def cancel(self) -> None:
        """Cancels the request, or keeps it from starting."""
        self.unwanted = True
        if self.task is not None:
            self.task.cancel()


def _nothing() -> None: ...


def _log_alarm(name: str, message: str) -> None:
    log.warning("%s: %s", name, message)


class Client:
    """Sends the requests of one run to one endpoint. The budget is kept under the id `run`, across kills. `tell`
    receives alarms. `check` is called while the client waits, and may raise to stop it. `counter` makes the function
    that returns the prompt tokens of a request for reservations; it is called once, before the first request is sent.
    By default a request's bytes are reserved.

    The client contacts the server, and reads the key, only when an answer is not in the store.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: AnswerStore,
        *,
        run: str,
        counter: Callable[[], Counter] | None = None,
        tell: Callable[[str, str], None] = _log_alarm,
        check: Callable[[], None] = _nothing,
    ) -> None:
        self.endpoint, self.store = endpoint, store
        self.account = Account(run, endpoint.name, endpoint.budget, endpoint.price)
        self.progress = Progress()
        self._counter, self._tell, self._check = counter, tell, check
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
        """Yields the result of each request, in order: an `Answer` to a chat or completion, `Scores`, `Vectors`, or a
        `Failure`. Requests are read as needed, a bounded number ahead.

        Raises TogiError if no further request can be answered; answers in flight are stored first.
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
        """Answers requests through batches; returns the failed ones."""
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
        """What is known of the server, for reports; empty until it has been contacted."""
        return {} if self._abilities is None else endpoint_facts(self._abilities, self.endpoint)

    def close(self) -> None:
        """Cancels requests in flight, which stay charged. The store stays open."""
        self._background.end(self._end())

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the caller's thread ------------------------------------------------------------------------------------------

    def _name(self, request: AnyRequest) -> Name:
        return request_key(request, self.endpoint.model, self.endpoint.revision), request.index

    def _place(self, request: AnyRequest) -> "_Place":
        """The place for the result of a request, filled if its answer is stored. Equal requests in flight share one."""
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
        """Waits for the result of a request. Raises the error that ended it."""
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
        """Raises an alarm if scores were rounded to bfloat16."""
        if isinstance(result, Scores) and len(self._scores) < JUDGED_SCORES:
            self._scores += [score for score in result.scores if isinstance(score, float)]
            if len(self._scores) >= JUDGED_SCORES and on_bf16_steps(self._scores):
                self._tell(
                    "rounded_scores",
                    f"model {self.endpoint.name}: all scores are rounded to bfloat16, so close scores tie; serve the "
                    "reward model in float32",
                )
        return result

    def _drain(self, window: Iterable["_Place"]) -> None:
        """Waits for requests in flight, so that their answers are stored."""
        for place in window:
            with suppress(TogiError):
                self._result(place)

    def _cancel(self, window: Iterable["_Place"]) -> None:
        """Cancels the unfinished requests of a caller that stopped iterating."""
        left = [place for place in window if not place.done]
        loop = self._background.loop
        if loop is not None and left:
            loop.call_soon_threadsafe(lambda: [place.cancel() for place in left])

    def _start(self) -> asyncio.AbstractEventLoop:
        """Starts the event loop in its own thread, if it does not run yet, and returns it."""
        if self._background.loop is None:
            count = None if self._counter is None else self._counter()
            try:
                self._background.submit(self._open(count)).result()
            except TogiError:  # no key, no store
                self.close()
                raise
        return self._background.start()

    # --- the event loop -----------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Starts the requests that arrived since the last call."""
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
        """Stores the result or error of a request in its place."""
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
        """Wakes the caller; with many requests in flight only every few milliseconds, since a thread switch costs more
        than an answer."""
        if len(self._pending) < MANY:
            self._news.set()
        else:
            asyncio.get_running_loop().call_later(GATHER, self._news.set)

    async def _end(self) -> None:
        """Closes the exchange."""
        if self.exchange is not None:
            await self.exchange.close()

    async def _open(self, count: Counter | None) -> None:
        self.exchange = Exchange(self.endpoint, self.account, self.store.path, count)
        self._abilities = Abilities(self.exchange, self._tell)

    async def _answer(self, request: AnyRequest, name: Name) -> Whole | Failure:
        """Answers one request. A TogiError ends the exchange, and so all other requests."""
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
                    f"model {self.endpoint.name}: {self._in_a_row} requests in a row failed, the last one with: "
                    f"{found.message}; {STORED}"
                )
            )
        return found

    async def _singly(self, exchange: Exchange, request: Generation, name: Name) -> Whole | Failure:
        """Asks for the choices of a request one by one; stores each, and then all together as well."""
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
