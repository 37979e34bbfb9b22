"""A client for a server whose weights change during a run. It stores no answers, because the same request may have
another answer after the next update of the weights.

    client = LiveClient(endpoint, store, run=run_id)
    client.take(Weights(folder, mark))
    sampled = client.wait(client.sample(request))

`Exchange` handles retries, rate limits, servers that are down, and budgets.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

from togi.client.accounts import Account, Spending
from togi.client.background import Background
from togi.client.endpoint import Endpoint, Tokens
from togi.client.exchange import Exchange
from togi.client.probe import meet
from togi.client.store import AnswerStore
from togi.client.transfer import Transfers, Wire, sleep, wake
from togi.client.troubles import GivenUp
from togi.client.wire_base import Call
from togi.client.wire_samples import (
    Sampled,
    SampleRequest,
    Weights,
    orders,
    read_sample,
    read_score,
    refusal,
    sample,
    score,
)
from togi.core.errors import InputError, StageError

T = TypeVar("T")
LISTEN = 0.2
"""Seconds between checks of whether the run should stop."""
SPEAKS = ("vllm", "sglang", "togi")
NEEDS = {
    "vllm": "for weight updates, start vLLM with VLLM_SERVER_DEV_MODE=1, and for adapters with --enable-lora and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    "sglang": "for updates of adapters, start SGLang with --enable-lora",
    "togi": "for weight updates, start togi serve with --updates",
}
"""How each server must be started."""


class LiveClient:
    """A client for one endpoint whose weights the run replaces. The budget is kept under the id `run`. `check` is
    called while the client waits, and may raise to stop it. `wire` carries weights that are sent without a folder. The
    server is contacted at the first call."""

    def __init__(
        self,
        endpoint: Endpoint,
        store: AnswerStore,
        *,
        run: str,
        check: Callable[[], None] = lambda: None,
        wire: Wire | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._account = Account(run, endpoint.name, endpoint.budget, endpoint.price)
        self._store, self._check = store, check
        self._background = Background("togi-samples")
        self._exchange: Exchange | None = None
        self._met: asyncio.Lock | None = None
        self._known = False
        self._wire = wire
        self._transfers: Transfers | None = None
        self.weights: Weights | None = None

    @property
    def losses(self) -> int:
        """The number of connections to the server that broke or failed so far."""
        return 0 if self._exchange is None else self._exchange.losses

    def sample(self, request: SampleRequest) -> "Future[Sampled]":
        """Requests a sample; `wait` returns it. At most `concurrency` requests are in flight."""
        return self._submit(lambda exchange: self._sample(exchange, request))

    def score(self, ids: tuple[int, ...]) -> "tuple[tuple[float, ...], str | None]":
        """Log-probabilities (temperature 1) of all ids but the first, and the version of the server's weights. Raises
        StageError if the server does not return them."""
        return self.wait(self._submit(lambda exchange: self._score(exchange, ids)))

    def take(self, weights: Weights) -> None:
        """Makes every server of the endpoint load weights, and waits until they have. Raises StageError if one
        refuses."""
        self.wait(self._submit(lambda exchange: self._take(exchange, weights)))
        self.weights = weights

    def sleep(self) -> bool:
        """Makes the server free its memory; no request may be in progress. Returns False if the server went away
        meanwhile. Raises InputError if the server cannot sleep."""
        return self.wait(self._submit(lambda exchange: sleep(_alone(exchange, "engine.sleep"))))

    def wake(self) -> None:
        """Wakes the server if it sleeps; its weights must then be published again. Raises StageError if it does not
        wake, InputError if it cannot sleep."""
        self.wait(self._submit(lambda exchange: wake(_alone(exchange, "engine.sleep"))))

    def wait(self, future: "Future[T]") -> T:
        """Waits for the result of a request. Raises TogiError if it fails."""
        while not future.done():
            self._check()
            wait([future], LISTEN)
        return future.result()

    def spending(self) -> Spending:
        """What the run has spent on this endpoint so far, killed processes included."""
        return self._store.spending(self._account)

    def close(self) -> None:
        """Cancels requests in flight."""
        self._background.end(self._end())

    # --- in the event loop --------------------------------------------------------------------------------------------

    def _submit(self, work: Callable[[Exchange], Coroutine[Any, Any, T]]) -> "Future[T]":
        return self._background.submit(self._ask(work))

    async def _ask(self, work: Callable[[Exchange], Coroutine[Any, Any, T]]) -> T:
        exchange = await self._ready()
        try:
            async with exchange.slots:
                return await work(exchange)
        except GivenUp as error:
            raise exchange.end(StageError(f"model {self.endpoint.name}: {error.failure.message}")) from None

    async def _ready(self) -> Exchange:
        """The exchange, after checking that the server's protocol supports token ids and updates."""
        if self._exchange is None:
            self._exchange, self._met = Exchange(self.endpoint, self._account, self._store.path, None), asyncio.Lock()
        assert self._met is not None
        async with self._met:
            if not self._known:
                await meet(self._exchange)
                self._known = True
                if (speaks := self._exchange.dialect.speaks) not in SPEAKS:
                    raise InputError(
                        f"model {self.endpoint.name}: its protocol is {speaks}, which supports neither token ids nor "
                        f"weight updates; use vLLM, SGLang or togi serve --updates, and set protocol "
                        f"({', '.join(SPEAKS)})"
                    )
        return self._exchange

    async def _end(self) -> None:
        if self._exchange is not None:
            if self._transfers is not None:
                await self._transfers.part()
            await self._exchange.close()

    @property
    def _adapter(self) -> str:
        return self.weights.mark if self.weights is not None and self.weights.adapter else ""

    async def _sample(self, exchange: Exchange, request: SampleRequest) -> Sampled:
        speaks = exchange.dialect.speaks
        call = sample(request, self.endpoint.model, speaks, self._adapter)
        cost = Tokens(len(request.prompt), request.max_tokens)
        return await self._read(exchange, call, cost, partial(read_sample, speaks=speaks))

    async def _score(self, exchange: Exchange, ids: tuple[int, ...]) -> tuple[tuple[float, ...], str | None]:
        speaks = exchange.dialect.speaks
        call = score(ids, self.endpoint.model, speaks, self._adapter)
        return await self._read(exchange, call, Tokens(len(ids), 1), partial(read_score, speaks=speaks, count=len(ids)))

    async def _read(self, exchange: Exchange, call: Call, cost: Tokens, read: Callable[[Any], T]) -> T:
        async def take(value: Any, reserved: Tokens) -> T:
            found = read(value)
            await exchange.settle_reply(value, reserved)
            return found

        return await exchange.fetch(lambda: call, cost, take)

    async def _take(self, exchange: Exchange, weights: Weights) -> None:
        if not weights.folder:
            assert self._wire is not None
            transfers = self._transfers or Transfers(_alone(exchange, "engine.publish: transfer"), self._wire)
            self._transfers = transfers
            await transfers.send(weights.mark)
            return
        for replica in exchange.replicas.all:
            for call in orders(weights, exchange.dialect.speaks):
                try:
                    reply = await exchange.order(replica, call)
                except InputError as error:
                    raise exchange.end(InputError(f"{error}; {NEEDS[exchange.dialect.speaks]}")) from None
                if why := refusal(reply):
                    raise exchange.end(
                        StageError(
                            f"model {self.endpoint.name}: {replica.base} did not load the weights in {weights.folder}: "
                            f"{why}; can the server read that folder? (engine.folder)"
                        )
                    )


def _alone(exchange: Exchange, what: str) -> Exchange:
    """The exchange, if it has a single server. Raises InputError otherwise."""
    if len(exchange.replicas.all) > 1:
        raise exchange.end(InputError(f"model {exchange.endpoint.name}: {what} needs a single url; remove the others"))
    return exchange
