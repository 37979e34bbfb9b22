"""HTTP/1.1 over asyncio: one request at a time per connection, and a complete reply or the reason why there is none.

The parser is httptools. Full client libraries are too slow for the target in benchmarks/client.py: aiohttp needs 4
times, httpx 20 times the processor time of bare streams.
"""

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from togi.client.proxy import Proxy, Refused, Tunnel, proxy_of

MOST_BYTES = 256 * 1024**2
"""The longest reply body accepted."""
IDLE_SECONDS = 4.0
"""Idle connections older than this are not reused, because servers close them after 5 s."""
CONNECT_SECONDS = 15.0
SILENT_SECONDS = 30
"""A server counts as gone if its kernel acknowledges neither data nor keep-alives for this long."""


class Unsent(Exception):
    """The server could not be reached; it has not seen the request."""


class Lost(Exception):
    """The request was sent, but no complete reply came."""


@dataclass(frozen=True, slots=True)
class Place:
    """A server: its address, whether connections are encrypted, and the proxy that the environment names."""

    host: str
    port: int
    secure: bool
    proxy: Proxy | None = None


def place_of(url: str) -> tuple[Place, str]:
    """The server of a URL, and the path on it. Raises Unsent if it is not an http or https URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Unsent(str(error)) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unsent("it is not an http:// or https:// URL")
    if parts.username or parts.password:
        raise Unsent("a URL must not contain a key; put the key in an environment variable and name it as key_env")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    port = port or (443 if secure else 80)
    try:
        proxy = proxy_of(parts.hostname, port, secure=secure)
    except Refused as error:
        raise Unsent(str(error)) from None
    return Place(parts.hostname, port, secure, proxy), path


class Connection(asyncio.Protocol):
    """A connection to a server. `ask` sends one request; `status`, `headers` and `body` then hold the reply."""

    def __init__(self) -> None:
        self.used = False
        self.rested = 0.0
        self.reusable = True
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[None] | None = None

    def ask(self, request: bytes) -> "asyncio.Future[None]":
        """Sends a request. The future is done when the reply is complete, and raises Lost if it never will be."""
        assert self._transport is not None
        self._parser: Any = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._size, self._headed = 0, False
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._reply

    @property
    def status(self) -> int:
        """The status of the reply."""
        return self._parser.get_status_code()

    @property
    def body(self) -> bytes:
        """The body of the reply."""
        return b"".join(self._parts)

    def close(self) -> None:
        """Closes the connection and discards unsent data."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # --- called by asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stores the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _watch(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Reads a piece of the reply."""
        if self._reply is None or self._reply.done():
            self.close()  # unsolicited data
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP ({error})")
        except httptools.HttpParserUpgrade:
            self._fail("the server asks to switch to another protocol")

    def connection_lost(self, error: Exception | None) -> None:
        """Completes a reply without a stated length, which ends with its connection; any other reply is lost."""
        self.reusable = False
        if self._reply is None or self._reply.done():
            return
        stated = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "")
        if self._headed and not stated and error is None:
            self._reply.set_result(None)
        else:
            why = "after a part of it" if self._headed else "before it began"
            self._fail(f"the connection was closed {why}")

    # --- called by the parser -----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Stores a header under its name in lower case."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Refuses a stream of events, since requests never ask for one."""
        self._headed = True
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            self._fail("the server sends a stream of events, but the request asked for one complete answer")

    def on_body(self, data: bytes) -> None:
        """Stores a piece of the body."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST_BYTES:
            self._fail(f"the answer is longer than {MOST_BYTES // 1024**2} MiB")

    def on_message_complete(self) -> None:
        """Completes the reply, unless it is an interim one (1xx)."""
        if self.status < 200:
            self.headers, self._headed = {}, False
        elif self._reply is not None and not self._reply.done():
            self.reusable = self.reusable and self._parser.should_keep_alive()
            self._reply.set_result(None)

    def _fail(self, why: str) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(Lost(why))
        self.close()


def _watch(connection: socket.socket) -> None:
    """Makes the kernel end a connection whose other side is gone, long before the deadline of a request. A busy server
    keeps its connection, because its kernel still acknowledges."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENT_SECONDS), ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1000)):
        if hasattr(socket, name):  # Linux only; elsewhere only the deadline ends such a connection
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Connections:
    """The connections of one event loop, kept open for reuse."""

    def __init__(self) -> None:
        self._resting: dict[Place, list[Connection]] = {}
        self._secure: ssl.SSLContext | None = None

    async def ask(self, place: Place, request: bytes) -> Connection:
        """The connection that holds the reply to `request`; give it back with `rest`. Raises Unsent or Lost."""
        connection = self._rested(place) or await self._open(place)
        try:
            await connection.ask(request)
        except (Lost, asyncio.CancelledError):
            connection.close()  # a late reply must not reach the next request
            raise
        return connection

    def rest(self, place: Place, connection: Connection) -> None:
        """Keeps a connection for reuse, if the server keeps it open."""
        if connection.reusable:
            connection.rested = time.monotonic()
            self._resting.setdefault(place, []).append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Closes all idle connections."""
        for resting in self._resting.values():
            for connection in resting:
                connection.close()
        self._resting.clear()

    def _rested(self, place: Place) -> Connection | None:
        """The connection that became idle last and is still usable, or None."""
        resting = self._resting.get(place, [])
        while resting:
            connection = resting.pop()
            if connection.reusable and time.monotonic() - connection.rested < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _open(self, place: Place) -> Connection:
        if place.secure and self._secure is None:
            self._secure = ssl.create_default_context()
        by = "" if place.proxy is None else f"{place.proxy.where}: "
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connected(place)
        except TimeoutError:
            raise Unsent(f"{by}could not connect within {CONNECT_SECONDS:.0f} s") from None
        except Refused as error:
            raise Unsent(str(error)) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: the host name is invalid
            raise Unsent(by + (getattr(error, "strerror", None) or str(error))) from None

    async def _connected(self, place: Place) -> Connection:
        """Connects to a server: directly, to its proxy if there is one, or through a tunnel in it for https."""
        loop = asyncio.get_running_loop()
        if place.proxy is None:
            secure = self._secure if place.secure else None
            return (await loop.create_connection(Connection, place.host, place.port, ssl=secure))[1]
        proxy = place.proxy
        if not place.secure:
            return (await loop.create_connection(Connection, proxy.host, proxy.port))[1]
        assert self._secure is not None
        plain, tunnel = await loop.create_connection(
            lambda: Tunnel(proxy, place.host, place.port), proxy.host, proxy.port
        )
        connection = Connection()
        led = None
        try:
            await tunnel.open
            led = await loop.start_tls(plain, connection, self._secure, server_hostname=place.host)
        finally:
            if led is None:
                plain.abort()
        assert led is not None
        connection.connection_made(led)
        return connection
