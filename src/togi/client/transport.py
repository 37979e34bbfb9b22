"""One HTTP exchange: bytes out, a whole reply in, or the reason why there is none.

Redirects are not followed: a request that carries a key goes where the recipe says, or nowhere. A reply that is cut,
too long, or a stream of events where a whole was asked for is no reply.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from yarl import URL

import togi
from togi.client.pacing import retry_after

MOST_BYTES = 256 * 1024**2
"""Longest reply that is read."""
CONNECT_SECONDS = 15.0
JSON = {"Content-Type": "application/json"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Broke = Literal["unsent", "lost", "deadline"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP reply."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait."""
        return retry_after(self.headers)

    @property
    def location(self) -> str:
        """Where a redirect leads."""
        return self.headers.get("Location", "")

    def json(self) -> Any:
        """The value of a JSON body. Raises ValueError for anything else."""
        return json.loads(self.body)

    def words(self) -> str:
        """What an error reply says, in one line: the message of its JSON, or its text."""
        try:
            value = self.json()
        except (ValueError, RecursionError):
            value = self.body.decode("utf-8", "replace")
        for key in ("error", "detail", "message"):
            if isinstance(value, dict) and value.get(key):
                value = value[key]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return " ".join(text.split())[:300]


class NoReply(Exception):
    """There is no whole reply. `broke` says whether the request may have reached the server: `unsent` did not."""

    def __init__(self, broke: Broke, message: str) -> None:
        super().__init__(message)
        self.broke = broke


class Transport:
    """Keeps connections to the servers of one endpoint. Lives in one event loop."""

    def __init__(self, concurrency: int, key: str | None, bases: tuple[str, ...]) -> None:
        headers = {"User-Agent": f"togi/{togi.__version__}"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=concurrency + 4, ttl_dns_cache=300),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=not all(URL(base).host in LOOPBACK for base in bases),
        )

    async def send(self, method: str, url: str, body: Any, seconds: float) -> Reply:
        """The reply to one request within `seconds`; `body` is bytes, a form, or None. Raises NoReply."""
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        headers = JSON if isinstance(body, bytes) else None
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=limit, allow_redirects=False
            ) as found:
                return Reply(found.status, await _read(found), found.headers)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise NoReply("unsent", f"{url}: cannot be reached: {_why(error)}") from None
        except TimeoutError:
            raise NoReply("deadline", f"{url}: no whole answer within {seconds:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NoReply("lost", f"{url}: the answer broke off: {_why(error)}") from None

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()
        await asyncio.sleep(0)


async def _read(found: aiohttp.ClientResponse) -> bytes:
    """The body, whole. Raises ValueError for one that has no end or is too long."""
    if found.content_type == "text/event-stream" and found.status == 200:
        raise ValueError("the server sends a stream of events, where one whole answer was asked for")
    parts, size = [], 0
    async for part in found.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"the answer is longer than {MOST_BYTES // 1024**2} MiB")
    return b"".join(parts)


def _why(error: Exception) -> str:
    """What a library's error says, in a few words."""
    system = getattr(error, "os_error", None)
    text = str(system.strerror if system is not None and system.strerror else error)
    return " ".join(text.split())[:200] or type(error).__name__
