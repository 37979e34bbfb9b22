"""Turns a request into its stored answer: reserves, sends, checks and stores, and retries where that can help.

Everything here runs in the client's event loop. A slot is taken before a reservation is written and freed after the
answer is committed, so a kill loses at most `concurrency` requests, and lost requests stay charged.
"""

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from togi.client.accounts import Account, reserve, settle, spending
from togi.client.answers import Failure, Whole, dump, load
from togi.client.committer import Committer
from togi.client.endpoint import NO_TOKENS, Endpoint, Tokens, read_key, root_of
from togi.client.pacing import Gate, Pace, backoff
from togi.client.replicas import Replica, Replicas
from togi.client.requests import AnyRequest, written_at_most
from togi.client.store import Name, keep_answer
from togi.client.transport import NoReply, Reply, Transport
from togi.client.troubles import STORED, Again, Busy, GivenUp, check_status, down
from togi.client.wire import Dialect, usage_of
from togi.client.wire_base import Broken, Call
from togi.core.errors import StageError, TogiError

T = TypeVar("T")
TRIES = 6
"""The number of times that a request is sent if servers drop it or answer wrongly."""
PATIENCE = 60.0
"""Seconds of only refusals (429), or without any server, after which a run ends."""
FIRST_PATIENCE = 3.0
"""Seconds without any server after which a run ends, if none has answered before."""
LOOK = 0.5
"""Seconds between checks of whether the run has ended, while sleeping."""
SETTLE_LOOK = 0.02
"""Seconds between checks of whether other requests have settled."""
JSON = "application/json"
log = logging.getLogger(__name__)
_json = json.JSONEncoder(ensure_ascii=False).encode

Take = Callable[[Any, Tokens], Awaitable[T]]
Counter = Callable[[AnyRequest], int]


@dataclass(frozen=True, slots=True)
class _Reserved(Tokens):
    """The reservation for one request; `excess` of its input tokens are for what templates add to prompts."""

    excess: int = 0


class Exchange:
    """Sends requests to the servers of one endpoint. `count` returns the prompt tokens of a request; by default its
    bytes are used."""

    def __init__(self, endpoint: Endpoint, account: Account, store: Path, count: Counter | None) -> None:
        self.endpoint, self.account = endpoint, account
        self._committer = Committer(store)
        self.label = f"{endpoint.model}@{endpoint.revision}"
        self.dialect = Dialect()
        self.fatal: TogiError | None = None
        self.replicas = Replicas([Replica(base) for base in endpoint.bases])
        self.slots = asyncio.Semaphore(endpoint.concurrency)
        self._count = count or _bytes
        self._gate = Gate()
        self._requests, self._tokens = Pace(endpoint.requests_per_minute), Pace(endpoint.tokens_per_minute)
        self.transport = Transport(read_key(endpoint))
        self._ever = False
        self.losses = 0  # connections that broke or failed: the server may have been replaced since
        self.excess = 0
        self._under_way = self._settled = 0
        self._begun = False

    async def close(self) -> None:
        """Closes the connections and the store."""
        await self.transport.close()
        await self._committer.close()

    # --- one request --------------------------------------------------------------------------------------------------

    async def ask(self, request: AnyRequest, name: Name) -> Whole | Failure:
        """The answer to a request, stored under `name`, or a Failure. Raises TogiError if no further request can be
        answered."""

        async def take(value: Any, reserved: Tokens) -> Whole:
            found = self.dialect.read(request, value)
            return await self._keep(replace(found, usage=self._used(value, reserved)), reserved, name)

        try:
            async with self.slots:
                return await self.fetch(
                    lambda: self.dialect.call(request, self.endpoint.model), self.cost(request), take
                )
        except GivenUp as error:
            return error.failure

    async def _keep(self, answer: Whole, reserved: Tokens, name: Name) -> Whole:
        """Stores an answer and settles its reservation in one transaction. Returns the stored answer, which may be
        another process's answer to the same request."""
        body = dump(answer)

        def work(db: sqlite3.Connection) -> bytes:
            settle(db, self.account, reserved, answer.usage)
            return keep_answer(db, name, self.label, body)

        kept = await self.write(work)
        return answer if kept == body else load(kept)

    def cost(self, request: AnyRequest) -> Tokens:
        """The most tokens that a request can use: its prompt, and its longest answer."""
        return Tokens(self._count(request), written_at_most(request))

    def _used(self, value: Any, reserved: Tokens) -> Tokens:
        """The usage that a reply reports, or the whole reservation if it reports none. If a prompt was longer than
        counted, because a template added tokens to it, later reservations grow by the difference."""
        used = usage_of(value) or Tokens(reserved.input, reserved.output)
        if isinstance(reserved, _Reserved):
            self.excess = max(self.excess, used.input - (reserved.input - reserved.excess))
        return used

    # --- many tries ---------------------------------------------------------------------------------------------------

    async def fetch(self, call: Callable[[], Call], cost: Tokens, take: Take[T]) -> T:
        """Sends a call until it succeeds, and returns the result of `take`, which receives the JSON of the reply and
        the reservation, and settles it.

        Raises GivenUp when the tries or the deadline are exhausted, TogiError when the run has ended.
        """
        spent, tries = 0.0, 0
        while True:
            await self._turn(cost)
            began = time.monotonic()
            try:
                return await self._attempt(call(), cost, take, self.endpoint.deadline - spent)
            except Again as again:
                spent, tries = spent + time.monotonic() - began, tries + again.counts
                wait = 0.0 if again.at_once else backoff(tries)
                if again.reason == "deadline" or spent + wait >= self.endpoint.deadline:
                    raise GivenUp("deadline", f"{again} (deadline: {self.endpoint.deadline:.0f} s)") from None
                if tries >= TRIES:
                    raise GivenUp(again.reason, f"{again} ({tries} tries)") from None
                await self._sleep(wait)
                spent += wait
            except Busy as busy:
                self._pause(busy)

    async def _turn(self, cost: Tokens) -> None:
        """Waits until a request may be sent. Raises the error that has ended the run."""
        self._check()
        await self._sleep(self._requests.wait())
        await self._sleep(self._tokens.wait(cost.total))
        while (seconds := self._gate.wait()) > 0:
            await self._sleep(seconds)
        while not self.replicas.pick():
            await self._sleep(self.replicas.rest_left() + 0.01)

    async def _sleep(self, seconds: float) -> None:
        """Waits, unless the run ends meanwhile. Raises the error that has ended it."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK))
            self._check()

    def _check(self) -> None:
        if self.fatal is not None:
            raise self.fatal

    def end(self, error: TogiError) -> TogiError:
        """Stops further requests; those in flight are still answered and stored."""
        self.fatal = self.fatal or error
        return self.fatal

    def _pause(self, busy: Busy) -> None:
        """Closes the gate after a 429; ends the run if the refusals persist."""
        patience = min(PATIENCE, self.endpoint.deadline)
        if (busy.seconds or 0.0) > patience:
            why = f"the server asks to wait {busy.seconds:.0f} s"
        else:
            self._gate.close(busy.seconds)
            if self._gate.busy_for() < patience:
                return
            why = f"only refusals for {self._gate.busy_for():.0f} s"
        limits = "lower concurrency, or set requests_per_minute or tokens_per_minute"
        raise self.end(StageError(f"model {self.endpoint.name}: too many requests: {why} ({busy}); {limits}; {STORED}"))

    # --- one try ------------------------------------------------------------------------------------------------------

    async def _attempt(self, call: Call, cost: Tokens, take: Take[T], seconds: float) -> T:
        reserved = await self._reserve(cost)
        try:
            replica = self.replicas.pick() or self.replicas.all[0]
            value = await self._value(replica, call, reserved, seconds)
            try:
                return await take(value, reserved)
            except Broken as broken:
                if (used := usage_of(value)) is not None:
                    await self._settle(reserved, used)
                if broken.filtered:
                    raise GivenUp("filtered", str(broken)) from None
                raise Again("broken", f"{replica.base}: {broken}") from None
        finally:
            self._finished()

    async def _value(self, replica: Replica, call: Call, reserved: Tokens, seconds: float) -> Any:
        """The JSON of a good reply. Raises the error for a bad one, and releases the reservation if the server cannot
        have used tokens."""
        url = (root_of(replica.base) if call.at_root else replica.base) + call.path
        reply = await self._send(replica, url, call, reserved, seconds)
        try:
            check_status(reply, self.endpoint, url)
        except Again:
            raise  # stays charged: a server that failed may have computed tokens
        except TogiError as error:
            await self._settle(reserved, NO_TOKENS)
            raise self.end(error) from None
        except GivenUp as error:
            await self._settle(reserved, NO_TOKENS)
            raise self._other_words(error) from None
        except Busy:
            await self._settle(reserved, NO_TOKENS)
            raise
        self._gate.answered()
        try:
            return reply.json()
        except (ValueError, RecursionError):
            raise Again("broken", f"{url}: the answer is not JSON: {reply.body[:60]!r}") from None

    async def _send(self, replica: Replica, url: str, call: Call, reserved: Tokens, seconds: float) -> Reply:
        body = _json(call.body).encode("utf-8", "surrogatepass")
        replica.under_way += 1
        replica.asked += 1
        try:
            reply = await self.transport.send("POST", url, body, seconds)
        except NoReply as error:
            self.losses += error.broke != "deadline"
            if error.broke == "unsent":
                await self._settle(reserved, NO_TOKENS)
                self._unreachable(replica, str(error))
            reason = "deadline" if error.broke == "deadline" else "broken"
            unsent = error.broke == "unsent"
            raise Again(reason, str(error), counts=not unsent, at_once=unsent) from None
        finally:
            replica.under_way -= 1
        self._reached(replica)
        return reply

    def _reached(self, replica: Replica) -> None:
        if replica.failures:
            log.warning("model %s: %s answers again", self.endpoint.name, replica.base)
        self.replicas.answered(replica)
        self._ever = True

    def _unreachable(self, replica: Replica, why: str) -> None:
        """Skips a server for a while, with a log message; ends the run if no server has been reachable for too long."""
        patience = min(PATIENCE if self._ever else FIRST_PATIENCE, self.endpoint.deadline)
        if self.replicas.failed(replica) and self._ever:
            log.warning("model %s: %s; waiting for it, at most %.0f s", self.endpoint.name, why, patience)
        if (seconds := self.replicas.down_for()) >= patience:
            raise self.end(down(self.endpoint, why, seconds, ever=self._ever))

    def _other_words(self, error: GivenUp) -> Exception:
        """The error to raise for `error`: OpenAI's newer models refuse `max_tokens`, and the request is sent again with
        `max_completion_tokens`."""
        if "max_completion_tokens" in str(error) and self.dialect.max_tokens != "max_completion_tokens":
            self.dialect.max_tokens = "max_completion_tokens"
            return Again("refused", str(error), at_once=True)
        return error

    async def get(self, path: str, *, at_root: bool = False) -> Reply:
        """The reply of the first reachable server to a GET. Raises TogiError if there is none."""
        while True:
            await self._turn(NO_TOKENS)
            replica = self.replicas.pick() or self.replicas.all[0]
            url = (root_of(replica.base) if at_root else replica.base) + path
            try:
                reply = await self.transport.send("GET", url, None, min(30.0, self.endpoint.deadline))
            except NoReply as error:
                self._unreachable(replica, str(error))
                continue
            self._reached(replica)
            return reply

    async def control(
        self, method: str, path: str, body: bytes | None = None, kind: str = JSON, failing: Sequence[int] = ()
    ) -> Reply:
        """The good reply to a request that computes nothing, or one with a status in `failing`. Or raises TogiError."""
        first = self.replicas.all[0]
        return await self._controlled(first, method, first.base + path, body, kind, failing)

    async def order(self, replica: Replica, call: Call) -> Reply:
        """The good reply of one server to an order, or any reply if it `may_fail`. Waits while the server is down.
        Raises TogiError as `control` does."""
        url = (root_of(replica.base) if call.at_root else replica.base) + call.path
        body = _json(call.body).encode()
        return await self._controlled(replica, "POST", url, body, failing=range(400, 429) if call.may_fail else ())

    async def _controlled(
        self, replica: Replica, method: str, url: str, body: bytes | None, kind: str = JSON, failing: Sequence[int] = ()
    ) -> Reply:
        tries = 0
        while True:
            await self._turn(NO_TOKENS)
            try:
                reply = await self.transport.send(method, url, body, self.endpoint.deadline, kind)
                self._reached(replica)
                if reply.status not in failing:
                    check_status(reply, self.endpoint, url)
                return reply
            except Busy as busy:
                self._pause(busy)
            except (NoReply, Again) as error:
                self.losses += isinstance(error, NoReply)
                if isinstance(error, NoReply) and error.broke == "unsent":
                    self._unreachable(replica, str(error))
                    continue
                tries += 1
                if tries >= TRIES:
                    why = f"model {self.endpoint.name}: {error} ({tries} tries); {STORED}"
                    raise self.end(StageError(why)) from None
                await self._sleep(backoff(tries))
            except GivenUp as error:
                raise self.end(StageError(f"model {self.endpoint.name}: {error}; {STORED}")) from None

    # --- the budget ---------------------------------------------------------------------------------------------------

    async def _reserve(self, cost: Tokens) -> _Reserved:
        """Reserves the most that a request can cost; if that does not fit, waits for others to settle. With a budget,
        the first request goes alone, because it shows how much templates add to a prompt.

        Raises StageError if it can never fit.
        """
        while self._bounded and self._begun and not self._settled:
            await self._sleep(SETTLE_LOOK)
        self._begun = True
        try:
            while True:
                before = self._settled
                wanted = _Reserved(cost.input + self.excess, cost.output, self.excess)
                if await self.write(partial(reserve, account=self.account, tokens=wanted)):
                    self._under_way += 1
                    return wanted
                if before == self._settled and self._under_way == 0:
                    raise self.end(await self.spent(wanted))
                await self._sleep(SETTLE_LOOK)
        except (TogiError, asyncio.CancelledError):
            self._begun = self._under_way > 0
            raise

    @property
    def _bounded(self) -> bool:
        budget = self.account.budget
        return budget.tokens is not None or budget.money is not None

    async def spent(self, cost: Tokens) -> StageError:
        """The error for a budget that is spent, or too small for one request."""
        now = await self.write(lambda db: spending(db, self.account))
        budget, price, name = self.account.budget, self.account.price, self.endpoint.name
        allowed = [f"{budget.tokens:,} tokens"] if budget.tokens is not None else []
        allowed += [f"{budget.money:g} (money)"] if budget.money is not None else []
        of_cost = f", {price.of(cost):.4g} in money" if budget.money is not None else ""
        request = (
            f"the next request may use {cost.total:,} tokens ({cost.input:,} input, {cost.output:,} output{of_cost})"
        )
        if now.tokens.total == 0:
            return StageError(
                f"model {name}: budget: {' and '.join(allowed)} is less than one request: {request}; raise "
                f"models.{name}.budget, or lower max_tokens"
            )
        lost = f" ({now.open.total:,} of them by requests that got no answer)" if now.open.total else ""
        used = f"{now.tokens.total:,} tokens are used{lost}"
        return StageError(
            f"model {name}: the budget of {' and '.join(allowed)} is spent: {used}, and {request}; {STORED} once "
            f"models.{name}.budget is raised"
        )

    async def settle_reply(self, value: Any, reserved: Tokens) -> None:
        """Settles the reservation of a reply that is not stored."""
        await self._settle(reserved, self._used(value, reserved))

    async def _settle(self, reserved: Tokens, used: Tokens) -> None:
        await self.write(lambda db: settle(db, self.account, reserved, used))

    def _finished(self) -> None:
        """Records that a reservation is settled, or lost."""
        self._under_way -= 1
        self._settled += 1

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in the store's next transaction."""
        return await self._committer.do(work)


def _bytes(request: AnyRequest) -> int:
    return request.prompt_bytes()
