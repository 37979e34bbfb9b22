"""Replies with values of the wrong type, halves of characters, numbers without measure, and reasons for no answer."""

import asyncio
import copy
import gzip
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_asks import chats, client, endpoint, texts
from hostile import hostile

from togi.client import transport
from togi.client.accounts import Account, reserve, settle
from togi.client.answers import Failure, dump, load
from togi.client.committer import Committer
from togi.client.endpoint import Tokens
from togi.client.requests import ChatRequest, CompletionRequest, EmbedRequest, ScoreRequest, TextPair
from togi.client.store import AnswerStore, keep_answer
from togi.client.transport import NoReply, Reply, Transport
from togi.client.wire import Dialect, usage_of
from togi.client.wire_base import Broken
from togi.client.wire_samples import read_sample, read_score
from togi.core.errors import StageError
from togi.core.records import SamplingParams

HALF = "\ud800"
DEEP = json.loads("[" * 600 + "]" * 600)
ODD = [None, True, 0, 5, -1, 10**400, -(10**400), 2**63, 0.5, float("inf"), float("nan"), "", "x", HALF, [], [5], [[]],
       [None], {}, {"a": 1}, {HALF: 1}, DEEP]  # fmt: skip
PARAMS = SamplingParams(n=1, max_tokens=4, logprobs=1)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TOP = {"token": "a", "logprob": -0.5}
CHAT = {
    "index": 0,
    "message": {"content": "a", "refusal": None, "reasoning_content": "hm"},
    "logprobs": {"content": [{**TOP, "top_logprobs": [TOP]}]},
    "finish_reason": "stop",
    "stop_reason": None,
}
PLAIN = {
    "index": 0,
    "text": "a",
    "token_ids": [5],
    "logprobs": {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}]},
    "finish_reason": "length",
    "stop_reason": None,
}
META = {
    "finish_reason": {"type": "stop", "matched": 5},
    "output_token_logprobs": [[-0.5, 5, "a"]],
    "output_top_logprobs": [[[-0.5, 5, None]]],
    "input_token_logprobs": [[None, 4, None], [-0.5, 5, None]],
    "prompt_tokens": 3,
    "completion_tokens": 1,
    "weight_version": "v1",
}
NATIVE = {"text": "a", "output_ids": [5], "meta_info": META}
SAMPLE = {"choices": [PLAIN], "usage": USAGE, "weight_version": "v1"}
ECHO = {"choices": [{"logprobs": {"token_logprobs": [None, -0.5]}}], "usage": USAGE, "weight_version": "v1"}
SCORES = {"data": [{"index": 0, "probs": [0.5], "data": [[0.5]], "score": 0.5}], "usage": USAGE}
IDS = CompletionRequest(prompt=(1, 2), params=PARAMS)
Read = Callable[[Any], Any]


def dialect(request: Any, speaks: str = "openai", path: str = "/classify") -> Read:
    return lambda value: dump(Dialect(speaks, score_path=path).read(request, value))


CASES: dict[str, tuple[Read, Any]] = {
    "chat": (dialect(ChatRequest(messages=(), params=PARAMS)), {"choices": [CHAT], "usage": USAGE}),
    "text": (dialect(CompletionRequest(prompt="a", params=PARAMS)), {"choices": [PLAIN], "usage": USAGE}),
    "ids": (dialect(IDS, "vllm"), {"choices": [PLAIN], "usage": USAGE}),
    "sglang": (dialect(IDS, "sglang"), NATIVE),
    "vectors": (dialect(EmbedRequest(texts=("a",))), {"data": [{"index": 0, "embedding": [0.5, 1]}], "usage": USAGE}),
    "pairs": (dialect(ScoreRequest(items=(TextPair("a", "b"),)), "vllm"), SCORES),
    "classify": (dialect(ScoreRequest(items=("a",)), "vllm"), SCORES),
    "pooling": (dialect(ScoreRequest(items=("a",)), "vllm", "/pooling"), SCORES),
    "own scores": (dialect(ScoreRequest(items=("a", "b")), "togi"), {"scores": [0.5, None], "errors": [None, "why"]}),
    "sglang scores": (
        dialect(ScoreRequest(items=("a",)), "sglang"),
        [{"embedding": [0.5], "meta_info": {"prompt_tokens": 3}}],
    ),
    "sample": (lambda value: read_sample(value, "togi"), SAMPLE),
    "sglang sample": (lambda value: read_sample(value, "sglang"), NATIVE),
    "score": (lambda value: read_score(value, "togi", 2), ECHO),
    "sglang score": (lambda value: read_score(value, "sglang", 2), NATIVE),
}
"""How each kind of reply is read, and a good one."""


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every value within `value`."""
    yield ()
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from ((key, *rest) for rest in places(each))


def changed(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    """`value` with another value at one place."""
    if not place:
        return odd
    made = copy.deepcopy(value)
    parent = made
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = odd
    return made


def without(value: Any, place: tuple[Any, ...]) -> Any:
    """`value` without what is at one place."""
    made = copy.deepcopy(value)
    parent = made
    for key in place[:-1]:
        parent = parent[key]
    del parent[place[-1]]
    return made


@pytest.mark.parametrize("kind", CASES)
def test_a_value_of_a_wrong_type_is_a_broken_reply_and_never_a_bug(kind: str) -> None:
    read, good = CASES[kind]
    assert read(good)
    made = [changed(good, place, odd) for place in places(good) for odd in ODD]
    made += [without(good, place) for place in places(good) if place]
    for value in made:
        usage_of(value)
        try:
            found = read(value)
        except Broken as broken:
            assert str(broken).encode() and len(str(broken)) < 400
            continue
        if isinstance(found, bytes):
            load(found)


@pytest.mark.parametrize(
    ("place", "odd"),
    [
        (("choices", 0, "finish_reason"), {}),
        (("choices", 0, "logprobs"), 5),
        (("choices", 0, "logprobs", "content", 0, "logprob"), 10**400),
        (("choices", 0, "message", "content"), HALF),
        (("choices", 0, "logprobs", "content", 0, "token"), HALF),
        (("choices", 0, "index"), True),
    ],
)
def test_these_replies_are_broken(place: tuple[Any, ...], odd: Any) -> None:
    read, good = CASES["chat"]
    with pytest.raises(Broken):
        read(changed(good, place, odd))


def test_half_a_character_fails_its_request_and_is_not_stored(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.001)
    with hostile(always="half-character") as server, client(tmp_path, endpoint(server.url)) as asked:
        (found,) = asked.ask(chats(1))
        assert isinstance(found, Failure) and found.reason == "broken" and "surrogate" in found.message
        assert asked.store.count() == 0 and set(server.stats()["seen"].values()) == {6}


def test_a_stored_answer_with_half_a_character_is_asked_for_again(tmp_path: Path) -> None:
    name = (b"k" * 32, 0)
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        store.write(lambda db: keep_answer(db, name, "m@", f'{{"text": "{HALF}"}}'.encode("utf-8", "surrogatepass")))
        assert store.get(name) is None
        assert store.write(lambda db: keep_answer(db, name, "m@", b"{}")) == b"{}" == store.get(name)


def test_usage_without_measure_counts_as_not_reported(tmp_path: Path) -> None:
    with hostile(always="much-usage") as server, client(tmp_path, endpoint(server.url)) as asked:
        texts(list(asked.ask(chats(20))))
        assert asked.spending().open.total == 0
        assert asked.spending().done.output == 20 * 8


def ask_for(body: bytes) -> None:
    """Asks a server whose reply is `body`, said to be compressed. Some compress though they are asked not to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def ask() -> None:
        server, transport = await asyncio.start_server(serve, "127.0.0.1", 0), Transport(None)
        async with server:
            port = server.sockets[0].getsockname()[1]
            try:
                await transport.send("GET", f"http://127.0.0.1:{port}/v1/models", None, 5.0)
            finally:
                await transport.close()

    asyncio.run(ask())


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8], ids=["cut", "garbled"])
def test_a_reply_that_cannot_be_decompressed_is_lost(damage: bytes) -> None:
    with pytest.raises(NoReply, match="cannot be decompressed") as found:
        ask_for(gzip.compress(b"[" + b"0," * 99 + b"0]")[:10] + damage)  # the head of gzip
    assert found.value.broke == "lost"


def test_a_small_reply_cannot_fill_the_memory(monkeypatch) -> None:
    monkeypatch.setattr(transport, "MOST_BYTES", 2**20)
    with pytest.raises(NoReply, match="longer than 1 MiB once decompressed"):
        ask_for(gzip.compress(bytes(2**20 + 1)))
    ask_for(gzip.compress(bytes(2**20)))


def test_the_reason_of_an_error_with_status_200_is_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.001)
    with hostile(always="error-in-200") as server, client(tmp_path, endpoint(server.url)) as asked:
        (found,) = asked.ask(chats(1))
    assert "the model is overloaded" in found.message


@pytest.mark.parametrize(
    ("message", "said", "filtered"),
    [
        ({"content": None, "refusal": "I cannot help"}, "refuses to answer: I cannot help", True),
        ({"content": "", "refusal": "No"}, "refuses to answer: No", True),
        ({"content": None, "reasoning_content": "hm"}, "only the model's reasoning", False),
        ({"content": "", "reasoning": "hm"}, "only the model's reasoning", False),
    ],
)
def test_a_refusal_or_mere_reasoning_is_no_answer(message: dict[str, Any], said: str, filtered: bool) -> None:
    reply = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    with pytest.raises(Broken, match=said) as error:
        Dialect("openai").read(chats(1)[0], reply)
    assert error.value.filtered == filtered


def test_an_answer_cut_while_the_model_reasoned_is_empty() -> None:
    row = {"index": 0, "message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}
    found: Any = Dialect("openai").read(chats(1)[0], {"choices": [row]})
    assert (found.text, found.choices[0].finish) == ("", "length")


def test_the_words_of_an_error_can_be_written_to_a_file() -> None:
    reply = Reply(400, json.dumps({"error": {"message": f"no {HALF}"}}).encode(), {})
    assert reply.words().encode() == rb"no \ud800"


# --- the store --------------------------------------------------------------------------------------------------------


def fail(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM accounts")
    raise KeyError("a bug")


def test_an_error_of_any_kind_rolls_back(tmp_path: Path) -> None:
    account = Account("run", "m")
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        store.write(lambda db: reserve(db, account, Tokens(1, 2)))
        with pytest.raises(KeyError):
            store.write(fail)
        with pytest.raises(StageError, match="a number is too large to be stored"):
            store.write(lambda db: settle(db, account, Tokens(), Tokens(2**70, 0)))
        store.write(lambda db: reserve(db, account, Tokens(1, 2)))
        assert store.spending(account).tokens == Tokens(2, 4)


def test_an_error_of_a_commit_reaches_all_who_wait_for_it(tmp_path: Path) -> None:
    async def outcomes() -> list[Any]:
        AnswerStore(tmp_path / "answers.sqlite").close()
        committer = Committer(tmp_path / "answers.sqlite")
        first = await asyncio.gather(committer.do(lambda db: 1), committer.do(fail), return_exceptions=True)
        second = await asyncio.gather(*(committer.do(lambda db, i=i: i) for i in range(3)))
        await committer.close()
        return [*map(type, first), *second]

    assert asyncio.run(asyncio.wait_for(outcomes(), 20)) == [KeyError, KeyError, 0, 1, 2]
