"""Requests and clients for the tests of the client."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from togi.client.answers import Answer
from togi.client.client import Client
from togi.client.endpoint import Endpoint
from togi.client.requests import ChatRequest
from togi.client.store import AnswerStore
from togi.core.records import Message, SamplingParams

RUN = "0123456789ab"


def chats(count: int, **params: Any) -> list[ChatRequest]:
    """Different requests, of at most 8 tokens each."""
    settings = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **params})
    return [ChatRequest(messages=(Message("user", f"question {i}"),), params=settings) for i in range(count)]


def endpoint(*urls: str, **settings: Any) -> Endpoint:
    return Endpoint(**{"name": "teacher", "urls": urls, "model": "m", "concurrency": 8, "deadline": 30.0, **settings})


@contextmanager
def client(path: Path, made: Endpoint, alarms: list[str] | None = None, **more: Any) -> Iterator[Client]:
    """A client with a store at `path`; the names of raised alarms are appended to `alarms`."""
    told: Callable[[str, str], None] = (lambda name, text: None) if alarms is None else (lambda n, t: alarms.append(n))
    with AnswerStore(path / "answers.sqlite") as store, Client(made, store, run=RUN, tell=told, **more) as found:
        yield found


def texts(results: list[Any]) -> list[str]:
    """The texts of the answers; fails the test if a request failed."""
    assert [result for result in results if not isinstance(result, Answer)] == []
    return [result.text for result in results]
