"""Proxies from the environment, as curl and the hub's library read it: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY,
in upper or lower case.

A request to an https server goes through a tunnel (CONNECT), so the proxy sees no key. This machine's own addresses are
never contacted through a proxy.
"""

import asyncio
import base64
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

LONGEST = 64 * 1024
"""The most bytes in a proxy's answer to CONNECT."""


class Refused(Exception):
    """The proxy cannot be used; the server has not seen the request."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and its login (the value of Proxy-Authorization, or empty)."""

    host: str
    port: int
    login: str = ""

    @property
    def header(self) -> str:
        """The Proxy-Authorization line of a request, or empty."""
        return f"Proxy-Authorization: {self.login}\r\n" if self.login else ""

    @property
    def where(self) -> str:
        """Its address for messages, without the login."""
        return f"the proxy {self.host}:{self.port}"


def proxy_of(host: str, port: int, *, secure: bool) -> Proxy | None:
    """The proxy for a server, or None to connect directly. Raises Refused if the proxy is not an http:// URL."""
    named = getproxies()
    scheme = "https" if secure else "http"
    url = named.get(scheme) or named.get("all")
    if not url or _own(host) or proxy_bypass(f"{host}:{port}"):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        found = parts.scheme, parts.hostname, parts.port
    except ValueError:
        found = "", None, None
    if found[0] != "http" or not found[1]:
        shown = url.rpartition("@")[2]
        variable = f"{scheme.upper()}_PROXY" if named.get(scheme) else "ALL_PROXY"
        raise Refused(f"{variable} is {shown!r}; it must be http://HOST:PORT")
    login = ""
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = f"Basic {base64.b64encode(words.encode()).decode()}"
    return Proxy(found[1], found[2] or 80, login)


def _own(host: str) -> bool:
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")


class Tunnel(asyncio.Protocol):
    """A connection to a proxy that opens a tunnel to a server. `open` is done when the tunnel is."""

    def __init__(self, proxy: Proxy, host: str, port: int) -> None:
        self._proxy = proxy
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._asked = f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n{proxy.header}\r\n".encode("latin-1")
        self._said = b""
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends CONNECT."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        """Reads the answer up to its blank line."""
        self._said += data
        if self.open.done() or (b"\r\n\r\n" not in self._said and len(self._said) < LONGEST):
            return
        status = self._said.partition(b"\r\n")[0].decode("latin-1")[:200]
        words = status.split(" ", 2)
        if words[0].startswith("HTTP/") and words[1:2] == ["200"]:
            self.open.set_result(None)
        else:
            self.open.set_exception(Refused(f"{self._proxy.where} refuses: {' '.join(words[1:]) or status}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Fails the tunnel if there was no answer."""
        if not self.open.done():
            self.open.set_exception(Refused(f"{self._proxy.where} closed the connection"))
