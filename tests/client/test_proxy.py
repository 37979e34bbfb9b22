"""Proxies from the environment: a tiny one on loopback that maps every name to a stub, with and without encryption."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stub_server import KEY, Stub, stub_server

from togi.client.transport import NoReply, Reply, Transport

ASKED = {"model": "small", "messages": [{"role": "user", "content": "Hi?"}]}


@dataclass
class Proxy:
    """`heads` holds the request head of each connection to the proxy."""

    listener: socket.socket
    behind: tuple[str, int]
    refuses: bool = False
    heads: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    def serve(self) -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                threading.Thread(target=self._one, args=(self.listener.accept()[0],), daemon=True).start()

    def _one(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            self.heads.append(head.partition(b"\r\n\r\n")[0].decode())
            if self.refuses:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(self.behind) as server:
                if head.startswith(b"CONNECT "):
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    server.sendall(head.replace(b"http://models.example:80/", b"/", 1))
                back = threading.Thread(target=_copied, args=(server, client), daemon=True)
                back.start()
                _copied(client, server)
                back.join(20)


def _copied(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def server() -> Iterator[Stub]:
    with stub_server() as found:
        yield found


@pytest.fixture
def proxy(server: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        found = Proxy(listener, ("127.0.0.1", server.server_address[1]))
        threading.Thread(target=found.serve, daemon=True).start()
        yield found


def send(url: str) -> Reply:
    """The reply to a chat request."""

    async def sent() -> Reply:
        transport = Transport(KEY)
        try:
            return await transport.send("POST", f"{url}/v1/chat/completions", json.dumps(ASKED).encode(), 60)
        finally:
            await transport.close()

    return asyncio.run(sent())


def said(reply: Reply) -> Any:
    assert reply.status == 200
    return reply.json()["choices"][0]["message"]["content"]


def test_a_plain_server_is_asked_through_its_proxy_by_its_whole_address(proxy: Proxy, server: Stub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
    assert said(send("http://models.example")).startswith("It is") and len(server.asked) == 1
    (head,) = proxy.heads
    assert head.startswith("POST http://models.example:80/v1/chat/completions HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in head  # me:p@ss


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_an_encrypted_server_is_asked_through_a_tunnel_that_sees_no_key(
    proxy: Proxy, server: Stub, tmp_path: Path, monkeypatch
):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=models.example"
    more = ["-addext", "subjectAltName=DNS:models.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words.split(), *more], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
    assert said(send("https://models.example")).startswith("It is") and len(server.asked) == 1
    assert [head.splitlines()[0] for head in proxy.heads] == ["CONNECT models.example:443 HTTP/1.1"]
    assert KEY not in proxy.heads[0]


@pytest.mark.parametrize("no_proxy", ["models.example", "*", ".example"])
def test_what_no_proxy_names_is_asked_directly(no_proxy: str, proxy: Proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    with pytest.raises(NoReply, match=r"models\.example.*cannot be reached"):
        send("http://models.example:9")
    assert proxy.heads == []


def test_this_machine_is_never_asked_through_a_proxy(proxy: Proxy, server: Stub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    assert said(send(f"http://127.0.0.1:{server.server_address[1]}")).startswith("It is") and proxy.heads == []


def test_a_proxy_that_refuses_or_is_none_is_told_without_its_password(proxy: Proxy, monkeypatch):
    proxy.refuses = True
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{proxy.port}")
    refused = f"the proxy 127.0.0.1:{proxy.port} refuses: 407 Proxy Authentication Required"
    with pytest.raises(NoReply, match=refused) as caught:
        send("https://models.example")
    assert caught.value.broke == "unsent" and "secret" not in str(caught.value)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://me:secret@127.0.0.1:1")
    with pytest.raises(NoReply, match=r"HTTPS_PROXY is '127\.0\.0\.1:1'; it must be http://HOST:PORT"):
        send("https://models.example")
