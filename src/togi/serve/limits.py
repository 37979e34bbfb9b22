"""What a server bears: how much a client may send, how long it may take, and what is counted of all requests."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
"""Bounds of the histogram of durations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`body_bytes` of a request; `seconds` in which it must be answered, streams too; `waiting` requests that may be
    under way at once. `client_seconds` in which a client must have sent the headers and the body of a request, and must
    take a part of its answer; `connections` that may be open at once."""

    body_bytes: int = 16 * 2**20
    client_seconds: float = 30
    seconds: float = 600
    waiting: int = 512
    connections: int = 10_000


class Counts:
    """Requests and tokens since the start, in the form that Prometheus reads."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter("togi_requests", "Requests, by path and status.", ("path", "status"), registry=registry)
        self.tokens = Counter("togi_tokens", "Tokens read (prompt) and written.", ("model", "kind"), registry=registry)
        self.running = Gauge("togi_requests_running", "Requests under way.", registry=registry)
        self.seconds = Histogram(
            "togi_request_seconds", "Seconds until an answer was whole.", ("path",), registry=registry, buckets=SECONDS
        )

    def used(self, model: str, usage: MutableMapping[str, int]) -> None:
        """Adds the tokens of an answer."""
        self.tokens.labels(model, "prompt").inc(usage["prompt_tokens"])
        self.tokens.labels(model, "completion").inc(usage["completion_tokens"])

    def page(self) -> Response:
        """GET /metrics"""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class Guard:
    """Wraps an app: counts every request, under its path if the app has one for it, and refuses bodies that are too
    long or too slow."""

    def __init__(self, app: App, limits: Limits, counts: Counts) -> None:
        self.app, self.limits, self.counts = app, limits, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.monotonic()

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        with self.counts.running.track_inprogress():
            try:
                await self.app(scope, self._bounded(scope, receive), noted)
            finally:
                found = scope["path"] if "endpoint" in scope else "other"  # set by the router that found a route
                path = getattr(scope.get("route"), "path", found)  # with {name} for a name, of which there is no end
                self.counts.requests.labels(path, str(status)).inc()
                self.counts.seconds.labels(path).observe(time.monotonic() - began)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which raises HTTPException once the body does not keep to its limits."""
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        size, whole = 0, False
        end = time.monotonic() + self.limits.client_seconds

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal size, whole
            if whole:
                return await receive()
            self._check_size(int(told) if told.isdigit() else 0)
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                late = f"the body did not come within {self.limits.client_seconds:g} s; send it again"
                raise HTTPException(408, late, {"Connection": "close"}) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            self._check_size(size)
            return message

        return bounded

    def _check_size(self, size: int) -> None:
        most = self.limits.body_bytes
        if size > most:
            why = f"the body has more than {most:,} bytes, the most that this server takes; send less"
            raise HTTPException(413, why)  # what is still sent is not read, and the client hears why
