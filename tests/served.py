"""Apps on a real socket, for tests that send requests as clients do."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from togi.serve.connections import server_config
from togi.serve.limits import Limits


@contextmanager
def serving(app: Any, limits: Limits = Limits()) -> Iterator[str]:  # noqa: B008 (frozen)
    """The URL of `app`, which is served for the duration of the block."""
    server = uvicorn.Server(server_config(app, limits, port=0, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a GET, or of a POST if `body` is given."""
    status, text = said(url, body, **headers)
    return status, json.loads(text)


def said(url: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and text of a GET, or of a POST if `body` is given."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
