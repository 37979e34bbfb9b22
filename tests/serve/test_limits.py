"""The limits and the counters of a server, tested over real sockets."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from served import ask, serving

from togi.serve.app import Served, new_app, unless_gone
from togi.serve.limits import Limits

LIMITS = Limits(body_bytes=1000, client_seconds=0.5, seconds=0.3)


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    """A server whose work takes as long as the request specifies."""
    served = Served(name="sleeper", kind="causal", limit=10, vocabulary=10, key="secret", limits=LIMITS)
    stopped: list[float] = []

    async def work(seconds: float) -> float:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            stopped.append(seconds)
            raise
        return seconds

    async def sleep(http: HttpRequest, body: dict[str, float | str]) -> JSONResponse:
        found = await unless_gone(http, work(float(body["seconds"])), served.limits.seconds)
        return JSONResponse({"slept": found})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    app = new_app(served, lambda: True, lifespan)
    app.add_api_route("/sleep", sleep, methods=["POST"])
    with serving(app) as url:
        yield SimpleNamespace(url=url, stopped=stopped, port=int(url.rpartition(":")[2]))


def sleep(server: SimpleNamespace, **body: float | str) -> tuple[int, dict]:
    return ask(f"{server.url}/sleep", body, authorization="Bearer secret")


def raw(server: SimpleNamespace, *parts: bytes, pause: float = 0.0) -> bytes:
    """The reply, read until its JSON ends or the server closes the connection; a read waits at most 5 s."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sent:
        for part in parts:
            sent.sendall(part)
            time.sleep(pause)
        found = b""
        while piece := sent.recv(4096):
            found += piece
            if b"}}" in found:
                break
    return found


def test_an_answer_that_takes_too_long_is_given_up(server):
    assert sleep(server, seconds=0.0) == (200, {"slept": 0.0})
    status, found = sleep(server, seconds=30.0)
    assert status == 504 and "no answer within 0.3 s" in found["error"]["message"]
    assert server.stopped == [30.0], "its work is cancelled"


def test_long_bodies_are_refused(server):
    status, found = sleep(server, seconds=0.0, more="x" * 2000)
    assert status == 413 and "more than 1,000 bytes" in found["error"]["message"]


def test_a_body_that_comes_in_pieces_is_counted_too(server):
    head = b"POST /sleep HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-type: application/json\r\n"
    pieces = [b"400\r\n" + b" " * 0x400 + b"\r\n"] * 3
    assert b" 413 " in raw(server, head + b"transfer-encoding: chunked\r\n\r\n", *pieces).partition(b"\r\n")[0]


def test_a_body_that_does_not_come_is_not_waited_for(server):
    head = b"POST /sleep HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-type: application/json\r\n"
    found = raw(server, head + b'content-length: 20\r\n\r\n{"sec')
    assert b" 408 " in found.partition(b"\r\n")[0] and b"did not arrive within 0.5 s" in found


@pytest.mark.parametrize("body", [b"{", b'{"seconds": \xff}', b"[]", b'"\\ud800"', b"[" * 900])
def test_what_is_no_request_is_refused_with_a_4xx(server, body):
    head = b"POST /sleep HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-type: application/json\r\n"
    found = raw(server, head + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    assert found.partition(b"\r\n")[0].split()[1][:1] == b"4", found
    assert sleep(server, seconds=0.0)[0] == 200


def test_many_idle_connections_are_borne(server):
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(300)]
    try:
        assert sleep(server, seconds=0.0)[0] == 200
    finally:
        for each in idle:
            each.close()


def metrics(server: SimpleNamespace) -> dict[str, float]:
    request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer secret\r\n\r\n"
    lines = raw(server, request).decode().partition("\r\n\r\n")[2].splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] == "t"}


def test_requests_are_counted_by_path_and_status(server):
    name = 'togi_requests_total{path="/sleep",status="200"}'
    unknown = 'togi_requests_total{path="other",status="404"}'
    before = metrics(server)
    sleep(server, seconds=0.0)
    ask(f"{server.url}/no-such-place", authorization="Bearer secret")
    for name_of_none in ("a", "b/c"):
        assert ask(f"{server.url}/v1/models/{name_of_none}", authorization="Bearer secret")[0] == 404
    after = metrics(server)
    assert after['togi_requests_total{path="/v1/models/{name:path}",status="404"}'] >= 2, "one count for all names"
    assert after[name] - before.get(name, 0) == 1 and after[unknown] - before.get(unknown, 0) == 1
    assert after["togi_requests_running"] == 1, "the one that asks"


def test_what_is_counted_wants_the_key(server):
    assert ask(f"{server.url}/metrics")[0] == 401


def test_long_headers_that_come_at_once_are_refused(server):
    line = b"GET /health HTTP/1.1\r\nconnection: close\r\nx: "
    assert b" 200 " in raw(server, line + b"a" * 60_000 + b"\r\n\r\n").partition(b"\r\n")[0]
    assert b" 431 " in raw(server, line + b"a" * 70_000 + b"\r\n\r\n").partition(b"\r\n")[0]
    assert sleep(server, seconds=0.0)[0] == 200
