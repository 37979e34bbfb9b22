"""An engine in its own thread: events reach every waiting reader, and nobody waits after the engine has ended."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from togi.core.errors import InputError, StageError
from togi.core.protocols import Event, Request
from togi.core.records import Completion, SamplingParams
from togi.serve.engine_loop import EngineLoop


class Counter:
    """Answers a request with its first id, after `max_tokens` steps; a prompt with the id 13 breaks it."""

    repeatable = True

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.done: dict[int, list[Event]] = {}
        self.most = 0
        self.cancelled: list[int] = []

    @property
    def busy(self) -> bool:
        return bool(self.left)

    def check(self, request: Request, name: str = "the prompt") -> None:
        if not request.prompt_ids:
            raise InputError(f"{name}: it has no tokens")

    def add(self, request: Request) -> int:
        number = len(self.done)
        self.left[number], self.done[number] = request.params.max_tokens, []
        self.first = request.prompt_ids[0]
        return number

    def step(self) -> None:
        self.most = max(self.most, len(self.left))
        if self.first == 13:
            raise RuntimeError("thirteen")
        for number in list(self.left):
            self.left[number] -= 1
            if not self.left[number]:
                del self.left[number]
                self.done[number] = [Event(number, 0, completion=Completion(text=str(number), stop="length"))]

    def ready(self, request: int) -> list[Event]:
        found, self.done[request] = self.done[request], []
        return found

    def cancel(self, request: int) -> None:
        if self.left.pop(request, None) is not None:
            self.cancelled.append(request)

    def events(self, request: int) -> Iterator[Event]:
        raise NotImplementedError

    def publish(self, weights) -> None: ...
    def close(self) -> None: ...


def asked(first: int = 1, tokens: int = 3) -> Request:
    return Request(prompt_ids=(first,), params=SamplingParams(max_tokens=tokens), seeds=(0,))


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    found = EngineLoop(Counter())
    found.start()
    yield found
    found.stop()


def test_requests_are_computed_beside_each_other_and_answered_in_order(loop):
    found = asyncio.run(loop.answers([asked(tokens=50000), asked(tokens=10), asked(tokens=20)]))
    assert [group[0].text for group in found.completions] == ["0", "1", "2"]
    assert loop.engine.most == 3 and not loop.engine.busy


def test_a_request_that_is_left_is_cancelled(loop):
    async def leave() -> None:
        task = asyncio.ensure_future(loop.answers([asked(tokens=10**9)]))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        while not loop.engine.cancelled:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(leave(), 20))
    assert loop.engine.cancelled == [0] and not loop.engine.busy


def test_what_can_never_be_answered_is_refused_before_anything_is_computed(loop):
    empty = Request(prompt_ids=(), params=SamplingParams(), seeds=(0,))
    with pytest.raises(InputError, match="no tokens"):
        asyncio.run(loop.answers([asked(), empty]))
    assert loop.engine.done == {}


def test_an_engine_that_fails_leaves_nobody_waiting_and_says_why():
    died: list[bool] = []
    loop = EngineLoop(Counter())
    loop.start(lambda: died.append(True))

    async def fail() -> None:
        async with aclosing(loop.events(asked(13))) as events:
            async for _ in events:
                pass

    for _ in range(2):  # the second request comes after the engine has ended
        with pytest.raises(StageError, match="the engine has ended"):
            asyncio.run(asyncio.wait_for(fail(), 20))
    with pytest.raises(RuntimeError, match="thirteen"):
        loop.raise_failure()
    assert died == [True]
    loop.stop()


def test_an_update_waits_for_what_is_under_way_and_comes_before_what_is_asked_later(loop):
    told: list[str] = []

    async def work() -> None:
        first = asyncio.ensure_future(loop.answers([asked(tokens=2000)]))
        await asyncio.sleep(0)
        update = asyncio.ensure_future(loop.update(lambda: told.append(f"busy {loop.engine.busy}")))
        await asyncio.sleep(0)
        later = asyncio.ensure_future(loop.answers([asked(tokens=5)]))
        for name, task in (("first", first), ("update", update), ("later", later)):
            task.add_done_callback(lambda _, name=name: told.append(name))
        await asyncio.gather(first, update, later)

    asyncio.run(asyncio.wait_for(work(), 20))
    assert told[0] == "busy False" or told[1] == "busy False"
    assert [name for name in told if name != "busy False"][-1] == "later" and loop.engine.most == 1


def test_what_an_update_raises_reaches_whoever_ordered_it(loop):
    def fail() -> None:
        raise InputError("these weights do not fit")

    with pytest.raises(InputError, match="do not fit"):
        asyncio.run(loop.update(fail))
    assert asyncio.run(loop.answers([asked()])).completions[0][0].stop == "length"


def test_a_reading_shares_the_weights_of_the_answers_asked_for_with_it(loop):
    order: list[str] = []

    def read() -> str:
        time.sleep(0.2)
        order.append("read")
        return "text"

    async def work() -> list[Any]:
        before = asyncio.ensure_future(loop.answers([asked(tokens=5)], read))
        await asyncio.sleep(0)
        update = asyncio.ensure_future(loop.update(lambda: order.append("update"), "b"))
        await asyncio.sleep(0)
        after = asyncio.ensure_future(loop.answers([], lambda: order.append("later")))
        return await asyncio.gather(before, after, update)

    before, after, _ = asyncio.run(asyncio.wait_for(work(), 20))
    assert order == ["read", "update", "later"]
    assert (before.read, before.version, after.version) == ("text", None, "b")


def test_an_error_of_a_reading_reaches_whoever_asked_and_the_engine_lives(loop):
    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        asyncio.run(loop.answers([], fail))
    assert asyncio.run(loop.answers([asked()])).completions[0][0].stop == "length"
