"""`togi serve` in a separate process, with slow, broken or many clients: each connection ends without a trace."""

import http.client
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from engines import Process
from tiny_run import tiny_model

SECONDS = 8
"""How long a client may be silent: long enough to open all connections of a test on a busy machine."""
FILES = 2300
"""The limit of open files; the server starts with a lower soft limit, which it may raise."""
LIMITED = f"""
import resource
import sys
from togi.__main__ import main
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, {FILES}))
sys.argv[0] = "togi"
main()
"""
STREAM = {"model": "policy", "prompt": "a", "max_tokens": 200, "n": 64, "stream": True, "ignore_eos": True}
"""An answer of two megabytes, more than the system buffers for a client that does not read."""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Process]:
    folder: Path = tmp_path_factory.mktemp("served")
    tiny_model(folder / "model")
    named = ("--name", "policy", "--template", "chatml", "--port", "{port}")
    bounds = ("--client-timeout", str(SECONDS), "--body-mib", "1")
    found = Process(folder / "home", "/health", "-c", LIMITED, "serve", str(folder / "model"), *named, *bounds)
    try:
        yield found
    finally:
        found.kill()


def opened(server: Process, sent: bytes = b"", keep: int | None = None) -> socket.socket:
    """A connection over which `sent` was sent; the system buffers about `keep` unread bytes."""
    found = socket.socket()
    if keep is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, keep)
    found.settimeout(60)
    found.connect(("127.0.0.1", server.port))
    found.sendall(sent)
    return found


def head(length: int, path: str = "/v1/completions") -> bytes:
    kind = "content-type: application/json"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{kind}\r\ncontent-length: {length}\r\n\r\n".encode()


def post(value: object) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return head(len(body)) + body


def rest(connection: socket.socket) -> bytes:
    """The rest of the reply until the server closes the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


def status(server: Process, value: object, path: str = "/v1/completions") -> int:
    asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    asked.request("POST", path, body, {"content-type": "application/json"})
    answer = asked.getresponse()
    answer.read()
    asked.close()
    return answer.status


def answers(server: Process) -> bool:
    return status(server, {"model": "policy", "prompt": "a", "max_tokens": 2}) == 200


def metric(server: Process, name: str) -> int:
    asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    asked.request("GET", "/metrics")
    lines = asked.getresponse().read().decode().splitlines()
    asked.close()
    return int(float(next(line for line in lines if line.startswith(f"{name} ")).split()[1]))


def running(server: Process) -> int:
    """The number of requests under way, without the one that asks."""
    return metric(server, "togi_requests_running") - 1


def until(done: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def room_for(connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < connections:
        pytest.skip(f"this process may open {hard} files at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, connections), hard))


def test_silent_clients_are_let_go_and_keep_nobody_out(server):
    room_for(3500)
    process = psutil.Process(server.process.pid)
    assert answers(server)
    before = process.num_fds()
    with ExitStack() as stack:
        slow_head = stack.enter_context(opened(server, b"POST /v1/completions HTTP/1.1\r\nhost:"))
        slow_body = stack.enter_context(opened(server, head(50) + b'{"model"'))
        idle = [stack.enter_context(opened(server)) for _ in range(2000)]
        deaf = stack.enter_context(opened(server, post(STREAM), keep=2048))
        assert answers(server) and running(server) >= 1
        over = [stack.enter_context(opened(server)) for _ in range(FILES - 2000)]
        assert any(b" 503 " in rest(each) for each in reversed(over)), "beyond its files it says that it is full"
        assert b" 408 " in rest(slow_head) and b" 408 " in rest(slow_body)
        assert not any(rest(each) for each in idle)
        until(lambda: running(server) == 0)  # the answer that nobody reads is abandoned
        assert deaf.fileno() >= 0
    until(lambda: process.num_fds() <= before + 4)
    assert answers(server)


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_again(server):
    name = 'togi_prompt_tokens_reused{model="policy"}'
    ask = {"model": "policy", "prompt": [5, 6, 7, 8] * 20, "max_tokens": 1}
    assert status(server, ask) == 200
    before = metric(server, name)
    assert status(server, {**ask, "prompt": [*ask["prompt"], 9]}) == 200
    assert metric(server, name) == before + 80


@pytest.mark.slow
def test_broken_requests_leave_no_memory_behind(server):
    process = psutil.Process(server.process.pid)

    def round() -> int:
        for _ in range(5):
            with opened(server, post(STREAM)) as stream:
                begun = b""
                while b"data: " not in begun:
                    piece = stream.recv(4096)
                    assert piece
                    begun += piece  # the connection is dropped in the middle
            with opened(server, head(10**6) + b"x" * 10**5):
                pass
            for body in (b"{", b"[" * 10**5, b'{"prompt": "\xff"}', b"x" * 10**6, b'{"model": "policy", "prompt": 1}'):
                assert status(server, body) == 400
            assert status(server, b" " * 2**21) == 413
            assert status(server, {"model": "policy", "prompt": "a" * 10**6}) == 400
            turns = [{"role": "nobody", "content": "a"}]
            assert status(server, {"model": "policy", "messages": turns}, "/v1/chat/completions") == 400
            with opened(server, b"GET / HTTP/1.1\r\nx: " + b"x" * 65_000) as long:
                time.sleep(0.5)
                long.sendall(b"x" * 1_000)
                assert b" 431 " in rest(long)
        until(lambda: running(server) == 0)
        assert answers(server)
        return process.memory_info().rss

    round()
    level = round()
    assert max(round() for _ in range(3)) < level + 30 * 2**20
