"""The limits of a server on the size and duration of requests, and the metrics that it counts."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EVENTS = b"text/event-stream"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
"""The bucket bounds of the histogram of durations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a server: `body_bytes` of a request; `seconds` to answer it, streams included; `waiting` requests
    in progress at once; `client_seconds` for a client to send the headers, to send the body, and to receive a part of
    its answer; `connections` open at once."""

    body_bytes: int = 16 * 2**20
    client_seconds: float = 30
    seconds: float = 600
    waiting: int = 512
    connections: int = 10_000


class Counts:
    """Counts of requests and tokens since the start, in Prometheus format."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter("togi_requests", "Requests, by path and status.", ("path", "status"), registry=registry)
        self.tokens = Counter("togi_tokens", "Tokens of prompts and completions.", ("model", "kind"), registry=registry)
        self.reused = Gauge(
            "togi_prompt_tokens_reused",
            "Prompt tokens whose keys earlier requests left.",
            ("model",),
            registry=registry,
        )
        self.running = Gauge("togi_requests_running", "Requests in progress.", registry=registry)
        self.seconds = Histogram(
            "togi_request_seconds", "Seconds until the complete answer.", ("path",), registry=registry, buckets=SECONDS
        )

    def used(self, model: str, usage: MutableMapping[str, int]) -> None:
        """Adds the tokens of an answer."""
        self.tokens.labels(model, "prompt").inc(usage["prompt_tokens"])
        self.tokens.labels(model, "completion").inc(usage["completion_tokens"])

    def page(self) -> Response:
        """GET /metrics"""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class Guard:
    """Wraps an app. It counts every request, by path if the app has a route for it, and refuses bodies that are too
    long or too slow. A request that is cut short because the server ends gets the error `farewell`."""

    def __init__(self, app: App, limits: Limits, counts: Counts, farewell: Mapping[str, Any]) -> None:
        self.app, self.limits, self.counts, self.farewell = app, limits, counts, farewell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.monotonic()
        start: MutableMapping[str, Any] = {}

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            start.update(message if message["type"] == "http.response.start" else {})
            await send(message)

        with self.counts.running.track_inprogress():
            try:
                await self.app(scope, self._bounded(scope, receive), noted)
            except asyncio.CancelledError:  # uvicorn cancels requests only when it ends
                await self._part(start, noted)
            finally:
                found = scope["path"] if "endpoint" in scope else "other"  # set by the router that found a route
                path = getattr(scope.get("route"), "path", found)  # the route's {name} keeps the number of labels small
                self.counts.requests.labels(path, str(status)).inc()
                self.counts.seconds.labels(path).observe(time.monotonic() - began)

    async def _part(self, start: Mapping[str, Any], send: Send) -> None:
        """Sends the farewell to the client of a cancelled request; as an event, if a stream has begun."""
        said = json.dumps(self.farewell).encode()
        if not start:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(said))]
            status = self.farewell["error"]["code"]
            await send({"type": "http.response.start", "status": status, "headers": headers})
        elif any(value.startswith(EVENTS) for name, value in start["headers"] if name == b"content-type"):
            said = b"data: %b\n\n" % said
        else:
            raise asyncio.CancelledError
        await send({"type": "http.response.body", "body": said})

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which raises HTTPException when the body exceeds its limits."""
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
                late = f"the body did not arrive within {self.limits.client_seconds:g} s; send it again"
                raise HTTPException(408, late, {"Connection": "close"}) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            self._check_size(size)
            return message

        return bounded

    def _check_size(self, size: int) -> None:
        most = self.limits.body_bytes
        if size > most:
            why = f"the body has more than {most:,} bytes, the most that this server accepts; send less"
            raise HTTPException(413, why)  # the rest is not read, and the client gets the reason
