"""The common part of all servers: keys, model names, errors in OpenAI's format, health, and clients that disconnect."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from togi.core.errors import InputError, RecipeError, StageError
from togi.core.sampling import Recommended
from togi.serve.limits import Counts, Guard, Limits
from togi.serve.wrong_bodies import wrong_body

GONE = 499
"""The status for a request whose client disconnected. Nobody receives it."""

ENDING = "the server is ending, before this answer is complete; send the request again later"

T = TypeVar("T")


class Problem(BaseModel):
    """The description of an error; `param` is the part of the request that is wrong."""

    message: str
    type: str
    param: str | None
    code: int


class Failed(BaseModel):
    """The body of every error response."""

    error: Problem


def refusals(**why: str) -> dict[int | str, dict[str, Any]]:
    """Error statuses and their descriptions, for the schema: `refusals(s404="no such model")`."""
    return {int(name[1:]): {"model": Failed, "description": text} for name, text in why.items()}


ALWAYS = refusals(s401="The key is missing or wrong.", s500="The model failed; see the server's log for the reason.")
SENT = refusals(
    s400="The request is invalid, or asks for something that this server does not support.",
    s404="The model is not served here.",
    s408="The body did not arrive in time.",
    s413="The body is too long.",
    s503="The server is ending.",
)
"""The errors of every request with a body."""


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The schema without FastAPI's 422, because invalid requests get a 400 here."""
        found = super().openapi()
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A served model: its name, its kind (causal, reward or embedder), and the sizes of its context (`limit`) and its
    `vocabulary` in tokens. `key` is what clients must send ("" for none), `limits` are the server's. `sampling` has the
    settings for what a request leaves out (None: OpenAI's defaults). `system` is the system prompt that clients should
    send, `default_system` that of conversations without one ("" for none)."""

    name: str
    kind: str
    limit: int | None
    vocabulary: int
    key: str = ""
    limits: Limits = field(default_factory=Limits)
    sampling: Recommended | None = None
    system: str = ""
    default_system: str = ""

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises InputError for an id that is not a token of the model."""
        wrong = next((each for each in ids if not 0 <= each < self.vocabulary), None)
        if wrong is not None:
            raise InputError(f"{wrong} is not a token id of this model; its ids are 0 to {self.vocabulary - 1}")

    def check_name(self, name: str) -> None:
        """Raises HTTPException for the name of another model."""
        if name != self.name:
            raise HTTPException(404, f"the model {name!r} is not served here; this is {self.name!r}")


def new_app(
    served: Served,
    healthy: Callable[[], bool],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    beside: Sequence[Served] = (),
) -> FastAPI:
    """An app with /health, /metrics, /v1/models and /openapi.json, for `served` and further models in `beside`. All
    paths but /health and the schema require the key. /metrics returns `app.state.counts`."""

    def check_key(request: Request) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if served.key and not hmac.compare_digest(shown.encode(), served.key.encode()):
            raise HTTPException(401, "the key is missing or wrong; send it as `Authorization: Bearer KEY`")

    app = _App(
        title="togi", lifespan=lifespan, dependencies=[Depends(check_key)], docs_url=None, redoc_url=None,
        responses=ALWAYS,
    )  # fmt: skip
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_body)
    for kind in (InputError, RecipeError):
        app.add_exception_handler(kind, _bad_input)
    app.add_exception_handler(StageError, _failed)
    app.router.add_route("/health", lambda request: JSONResponse(_health(served, healthy), 200 if healthy() else 503))
    named = {each.name: _model(each) for each in (served, *beside)}

    def model(name: str) -> dict[str, Any]:
        if name not in named:
            raise HTTPException(404, f"the model {name!r} is not served here; served: {' and '.join(named)}")
        return named[name]

    app.add_api_route("/v1/models", lambda: {"object": "list", "data": list(named.values())}, methods=["GET"])
    app.add_api_route(
        "/v1/models/{name:path}", model, methods=["GET"], responses=refusals(s404="The model is not served here.")
    )
    counts = app.state.counts = Counts()
    app.add_api_route("/metrics", counts.page, methods=["GET"], response_class=PlainTextResponse)
    app.add_middleware(Guard, limits=served.limits, counts=counts, farewell=error_value(503, ENDING))
    return app


def _health(served: Served, healthy: Callable[[], bool]) -> dict[str, str]:
    return {"status": "ok" if healthy() else "failed", "engine": "togi", "kind": served.kind}


def _model(served: Served) -> dict[str, Any]:
    about = {"id": served.name, "object": "model", "created": 0, "owned_by": "togi", "max_model_len": served.limit}
    sampling = None if served.sampling is None else served.sampling.model_dump()
    known = {"sampling": sampling, "system": served.system, "default_system": served.default_system}
    return about | {name: value for name, value in known.items() if value}


async def unless_gone(request: Request, work: Awaitable[T], seconds: float | None = None) -> T | None:
    """The result of `work`, or None if the client disconnects first; the work is then cancelled. Raises HTTPException
    if it takes longer than `seconds`."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
        if not done:
            raise HTTPException(504, f"no answer within {seconds:g} s; ask for fewer tokens, or raise --timeout")
        return task.result() if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait((task, gone))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def gone() -> Response:
    """The response to a client that disconnected."""
    return Response(status_code=GONE)


# --- errors -----------------------------------------------------------------------------------------------------------


def error(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error response in OpenAI's format."""
    return JSONResponse(error_value(status, message, param), status, headers)


def error_value(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error. Invalid Unicode, which may come from the request, is escaped."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": _unicode(message), "type": kind, "param": param and _unicode(param), "code": status}}


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _http_error(request: Request, found: Exception) -> Response:
    assert isinstance(found, HTTPException)
    return error(found.status_code, str(found.detail), headers=found.headers)


def _bad_input(request: Request, found: Exception) -> Response:
    return error(400, str(found))


def _failed(request: Request, found: Exception) -> Response:
    return error(500, str(found))


def _bad_body(request: Request, found: Exception) -> Response:
    """An error that names an invalid parameter and its allowed values."""
    assert isinstance(found, RequestValidationError)
    return error(400, *wrong_body(found.errors(), found.body, request.headers.get("content-type", "")))
