"""The limits on a client's connection: the time to send a request, the length of its headers, and the time to receive
the answer."""

import asyncio
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from togi.serve.app import error
from togi.serve.limits import Limits

HEAD_BYTES = 64 * 2**10
"""The most bytes in all headers of a request together."""
LONG_HEAD = f"the headers have more than {HEAD_BYTES:,} bytes; shorten them"


def server_config(app: Any, limits: Limits, **more: Any) -> uvicorn.Config:
    """The configuration with which uvicorn serves `app`."""
    keep = max(int(limits.client_seconds), 1)
    http = cast(Any, partial(Connection, limits=limits))
    return uvicorn.Config(
        app, http=http, ws="none", access_log=False, server_header=False, timeout_keep_alive=keep, **more
    )


class Connection(HttpToolsProtocol):
    """The connection of one client. uvicorn waits forever for headers and for a client that reads nothing; this class
    closes such a connection and drops the request in progress."""

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._waits: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_head, self._heads, self._head_bytes = True, 0, 0
        self._read_bytes = 0  # of the lines of a head that the parser has read

    # --- receiving ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` is called for every byte left unread
        if len(self.connections) > self._limits.connections:
            self._refuse(503, "too many connections are open; try again later")
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._waits, self._unread):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        heads = self._heads
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head and heads == self._heads else 0
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431, LONG_HEAD)
        self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._read_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._read_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._read_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._heads += 1
        app = self.app
        if self._read_bytes > HEAD_BYTES:  # they came all at once
            self.app = cast(Any, error(431, LONG_HEAD, headers={"connection": "close"}))
        super().on_headers_complete()
        self.app = app

    def _wait(self) -> None:
        """Limits the time until the headers are complete. The body then has its own limit."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._waits is not None:
            self._waits.cancel()
            self._waits = None
        elif not answering and self._waits is None:
            self._waits = self.loop.call_later(self._limits.client_seconds, self._late)

    def _late(self) -> None:
        if self._head_bytes and not self.transport.is_closing():
            self._refuse(408, f"the headers did not arrive within {self._limits.client_seconds:g} s; send them again")
        self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        body = bytes(error(status, message).body)
        length = b"content-length: %d\r\n" % len(body)
        kind = b"content-type: application/json\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + length + kind + body)
        self.transport.close()

    # --- sending ------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _watch(self, left: int) -> None:
        self._unread = self.loop.call_later(self._limits.client_seconds, self._check_taken, left)

    def _check_taken(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < before:
            self._watch(left)
        else:
            self.transport.abort()
