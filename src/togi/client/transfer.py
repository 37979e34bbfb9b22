"""The HTTP orders around a transfer of weights to one server, and the orders to sleep and to wake.

HTTP requests say what comes; the tensors travel over a `Wire`. The server answers a request only when its tensors have
arrived, so both run at the same time. After any failure both sides leave, and meet again for a new try.
"""

import asyncio
import json
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from togi.client.endpoint import root_of
from togi.client.exchange import Exchange
from togi.client.transport import NoReply, Reply
from togi.client.wire_base import Broken, Call
from togi.client.wire_samples import refusal
from togi.client.wire_transfer import (
    Meeting,
    TensorForm,
    asleep_path,
    meet_call,
    part_call,
    read_asleep,
    read_workers,
    sending,
    sleep_calls,
    wake_calls,
    workers_path,
)
from togi.core.errors import InputError, StageError

TRIES = 3
PARTING = 30.0
"""Seconds that a server has to leave a meeting."""
NEEDS = {
    "vllm": "for weight transfers, start vLLM 0.32 or later with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config "
    """'{"backend": "nccl"}'""",
    "sglang": "for weight transfers, use SGLang 0.5 or later",
    "togi": "for weight transfers, start togi serve with --updates",
}
SLEEPERS = {
    "vllm": "for sleep, start vLLM with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode",
    "sglang": "for sleep, start SGLang with --enable-memory-saver",
}
log = logging.getLogger(__name__)


class WireBroken(Exception):
    """The connection for tensors failed."""


class Wire(Protocol):
    """Carries tensors to the processes of a server. `join` and `send` block, in a thread of their own."""

    def forms(self) -> list[TensorForm]:
        """The tensors to send, in order."""
        ...

    def open(self, speaks: str, base: str, size: int) -> Meeting:
        """Prepares a meeting of `size` processes for the server at `base` with the protocol `speaks`. Raises InputError
        if there can be none."""
        ...

    def join(self) -> None:
        """Returns when all have joined. Raises WireBroken."""
        ...

    def send(self, forms: Sequence[TensorForm]) -> None:
        """Sends the next tensors. Raises WireBroken."""
        ...

    def close(self) -> None:
        """Leaves the meeting, if there is one."""
        ...


class Transfers:
    """The transfers of one stage to the server of `exchange`."""

    def __init__(self, exchange: Exchange, wire: Wire) -> None:
        self._exchange, self._wire = exchange, wire
        self._meeting: Meeting | None = None

    async def send(self, mark: str) -> None:
        """Gives the server the wire's tensors as weights of version `mark`. Waits while it is down. Raises StageError
        if it fails, InputError for a server that cannot receive them."""
        why = ""
        for _ in range(TRIES):
            try:
                meeting = self._meeting = self._meeting or await self._meet()
                await self._send(meeting, mark)
                return
            except (WireBroken, Broken, NoReply) as error:
                why = str(error)
                log.warning("model %s: sending weights failed: %s; meeting again", self._exchange.endpoint.name, why)
                await self.part()
        raise self._exchange.end(
            StageError(
                f"model {self._exchange.endpoint.name}: its server did not receive the weights: {why} ({TRIES} tries); "
                f"{NEEDS[self._speaks]}"
            )
        )

    async def part(self) -> None:
        """Leaves the meeting, and tells the server to."""
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            with suppress(Broken, NoReply):  # a server that was restarted knows of no meeting
                await _order(self._exchange, part_call(meeting, self._speaks), PARTING)
        self._wire.close()

    @property
    def _speaks(self) -> str:
        return self._exchange.dialect.speaks

    async def _meet(self) -> Meeting:
        path = workers_path(self._speaks)
        workers = read_workers(_json(await self._exchange.get(path, at_root=True), path), self._speaks)
        meeting = self._meeting = self._wire.open(self._speaks, self._exchange.replicas.all[0].base, workers + 1)
        await self._with(meet_call(meeting, self._speaks), self._wire.join)
        return meeting

    async def _send(self, meeting: Meeting, mark: str) -> None:
        orders = sending(self._wire.forms(), meeting, mark, self._speaks)
        for call in orders.before:
            await _order(self._exchange, call)
        for call, forms in orders.parts:
            await self._with(call, lambda forms=forms: self._wire.send(forms))
        for call in orders.after:
            await _order(self._exchange, call)

    async def _with(self, call: Call, work: Callable[[], None]) -> None:
        """Sends an order that the server fulfils together with `work`. Raises the first error of the two."""
        both = (asyncio.ensure_future(_order(self._exchange, call)), asyncio.wrap_future(_in_thread(work)))
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            for each in done:
                each.result()
        finally:
            for each in both:
                each.cancel()


def _in_thread(work: Callable[[], None]) -> "Future[None]":
    """Runs `work`, which may raise WireBroken, in a daemon thread of its own."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except WireBroken as error:
            future.set_exception(error)
        finally:
            if not future.done():
                future.set_exception(WireBroken("an error in togi; its traceback is in the log"))

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, name="togi-transfer", daemon=True).start()
    return future


# --- sleep ------------------------------------------------------------------------------------------------------------


async def sleep(exchange: Exchange) -> bool:
    """Makes the server sleep, if it does not sleep yet. Returns False if the server went away meanwhile. Raises
    InputError for a server that cannot sleep."""
    if await _asleep(exchange):
        return True
    try:
        for call in sleep_calls(exchange.dialect.speaks):
            await _order(exchange, call)
    except NoReply:
        return False
    except Broken as error:
        raise exchange.end(InputError(f"model {exchange.endpoint.name}: {error}; {_sleeper(exchange)}")) from None
    if not await _asleep(exchange):
        raise exchange.end(
            InputError(
                f"model {exchange.endpoint.name}: the server was told to sleep, but does not; {_sleeper(exchange)}"
            )
        )
    return True


async def wake(exchange: Exchange) -> None:
    """Wakes the server if it sleeps, also from the sleep of a killed run. Waits while it is down. Raises StageError if
    it cannot wake, InputError for a server that does not tell whether it sleeps."""
    why = ""
    for _ in range(TRIES):
        if not await _asleep(exchange):
            return
        try:
            for call in wake_calls(exchange.dialect.speaks):
                await _order(exchange, call)
        except (Broken, NoReply) as error:
            why = f" ({error})"
    if await _asleep(exchange):
        raise exchange.end(
            StageError(
                f"model {exchange.endpoint.name}: the server sleeps and does not wake{why}; is there enough memory on "
                "its card? Restart it, and run the same command again"
            )
        )


async def _asleep(exchange: Exchange) -> bool:
    path = asleep_path(exchange.dialect.speaks)
    try:
        if not path:
            raise Broken(f"{exchange.dialect.speaks} has no sleep; set engine.sleep: false")
        return read_asleep(_json(await exchange.get(path, at_root=True), path), exchange.dialect.speaks)
    except Broken as error:
        raise exchange.end(InputError(f"model {exchange.endpoint.name}: {error}{_advice(exchange)}")) from None


def _sleeper(exchange: Exchange) -> str:
    return SLEEPERS[exchange.dialect.speaks]


def _advice(exchange: Exchange) -> str:
    return f"; {_sleeper(exchange)}" if exchange.dialect.speaks in SLEEPERS else ""


# --- one order --------------------------------------------------------------------------------------------------------


async def _order(exchange: Exchange, call: Call, most: float = math.inf) -> None:
    """Sends an order once, because a second one could do harm, and waits at most `most` seconds. Raises Broken if the
    server refuses it, NoReply without a reply."""
    url, seconds = root_of(exchange.replicas.all[0].base) + call.path, min(most, exchange.endpoint.deadline)
    try:
        reply = await exchange.transport.send("POST", url, json.dumps(call.body).encode(), seconds)
    except NoReply:
        exchange.losses += 1
        raise
    if reply.status != 200:
        raise Broken(f"{url} answers {reply.status}: {reply.words() or 'nothing'}")
    if why := refusal(reply):
        raise Broken(f"{url}: {why}")


def _json(reply: Reply, path: str) -> Any:
    """The value of a good reply. Raises Broken."""
    if reply.status != 200:
        raise Broken(f"{path} answers {reply.status}: {reply.words() or 'nothing'}")
    try:
        return reply.json()
    except (ValueError, RecursionError):
        raise Broken(f"{path}: the answer is not JSON: {reply.body[:60]!r}") from None
