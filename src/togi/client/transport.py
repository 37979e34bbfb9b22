"""Sends one request and returns its complete reply, or the reason why there is none.

Redirects are not followed: a request that carries a key goes only to the address in the recipe.
"""

import asyncio
import gzip
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import togi
from togi.client.connection import MOST_BYTES, Connections, Lost, Place, Unsent, place_of
from togi.client.endpoint import shown_url
from togi.client.pacing import retry_after
from togi.client.wire_base import reason_of

Broke = Literal["unsent", "lost", "deadline"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP reply; header names are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait."""
        return retry_after(self.headers)

    @property
    def location(self) -> str:
        """The target of a redirect."""
        return self.headers.get("location", "")

    def json(self) -> Any:
        """The value of a JSON body. Raises ValueError for anything else."""
        return json.loads(self.body)

    def words(self) -> str:
        """The message of an error reply, in one line: that of its JSON, or its text."""
        text = self.body.decode("utf-8", "replace")
        try:
            return reason_of(self.json()) or " ".join(text.split())[:300]
        except (ValueError, RecursionError):
            return " ".join(text.split())[:300]


class NoReply(Exception):
    """There is no complete reply. `broke` tells whether the request may have reached the server; if `unsent`, it did
    not."""

    def __init__(self, broke: Broke, message: str) -> None:
        super().__init__(message)
        self.broke: Broke = broke


class Transport:
    """Sends requests to the servers of one endpoint over kept connections. Belongs to one event loop."""

    def __init__(self, key: str | None) -> None:
        self._connections = Connections()
        self._common = (
            f"User-Agent: togi/{togi.__version__}\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
        )
        if key is not None:
            self._common += f"Authorization: Bearer {key}\r\n"
        self._known: dict[str, tuple[Place, str]] = {}

    async def send(
        self, method: str, url: str, body: bytes | None, seconds: float, kind: str = "application/json"
    ) -> Reply:
        """The reply to one request within `seconds`; `kind` is the media type of its body. Raises NoReply."""
        try:
            place, head = self._head(method, url)
            content = b"" if body is None else body
            told = f"Content-Type: {kind}\r\n" if body is not None else ""
            request = f"{head}{told}Content-Length: {len(content)}\r\n\r\n".encode("latin-1") + content
            async with asyncio.timeout(seconds):
                connection = await self._connections.ask(place, request)
            reply = Reply(connection.status, connection.body, connection.headers)
            self._connections.rest(place, connection)
            return _plain(reply)
        except Unsent as error:
            raise NoReply("unsent", f"{shown_url(url)}: cannot be reached: {error}") from None
        except TimeoutError:
            raise NoReply("deadline", f"{url}: no complete answer within {seconds:.0f} s") from None
        except Lost as error:
            raise NoReply("lost", f"{url}: {error}") from None

    def _head(self, method: str, url: str) -> tuple[Place, str]:
        """The server of a URL, and the lines that begin a request to it."""
        if (found := self._known.get(method + url)) is None:
            place, path = place_of(url)
            host = f"[{place.host}]" if ":" in place.host else place.host
            more = ""
            if place.proxy is not None and not place.secure:  # a plain proxy needs the full URL
                path, more = f"http://{host}:{place.port}{path}", place.proxy.header
            lines = f"{method} {path} HTTP/1.1\r\nHost: {host}:{place.port}\r\n{self._common}{more}"
            found = self._known[method + url] = place, lines
        return found

    async def close(self) -> None:
        """Closes all connections."""
        self._connections.close()
        await asyncio.sleep(0)


def _plain(reply: Reply) -> Reply:
    """Decompresses a reply, for servers that compress despite `Accept-Encoding: identity`. Raises Lost if it cannot, or
    if the result would be larger than a reply may be."""
    if reply.headers.get("content-encoding", "identity") == "identity":
        return reply
    try:
        body = gzip.GzipFile(fileobj=io.BytesIO(reply.body)).read(MOST_BYTES + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Lost(f"the answer cannot be decompressed ({error})") from None
    if len(body) > MOST_BYTES:
        raise Lost(f"the answer is longer than {MOST_BYTES // 1024**2} MiB once decompressed")
    return Reply(reply.status, body, reply.headers)
