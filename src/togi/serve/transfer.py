"""Weights that a client sends over a connection between processes, as SGLang receives them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from togi.client.wire_transfer import Meeting
from togi.serve.app import SENT
from togi.serve.bodies import Text

Form = tuple[str, str, Sequence[int]]
"""The name, type and shape of a weight."""


class Receiving(Protocol):
    """The server's end of the connection. Its methods block, and raise InputError."""

    def join(self, meeting: Meeting, rank: int) -> None: ...
    def receive(self, name: str, forms: Sequence[Form]) -> Mapping[str, Any]: ...
    def leave(self, name: str) -> None: ...


class GroupBody(BaseModel):
    """POST /init_weights_update_group: the group to join, of `world_size` processes. The client is rank 0, and keeps
    the group's store at `master_address`; this server is rank `rank_offset`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    master_address: Text = Field(min_length=1)
    master_port: int = Field(ge=1, le=65535)
    rank_offset: int = Field(ge=1)
    world_size: int = Field(ge=2)
    group_name: Text = Field(default="weight_update_group", min_length=1)
    backend: Text = "nccl"


class DistributedBody(BaseModel):
    """POST /update_weights_from_distributed: the weights that the client sends meanwhile, in this order. Answers of
    these weights include `weight_version`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    names: list[Text]
    dtypes: list[Text]
    shapes: list[list[Annotated[int, Field(ge=0)]]]
    group_name: Text = "weight_update_group"
    weight_version: Text | None = None
    flush_cache: bool = True
    abort_all_requests: Literal[False] = False

    @model_validator(mode="after")
    def _alike(self) -> "DistributedBody":
        if not len(self.names) == len(self.dtypes) == len(self.shapes):
            raise ValueError("names, dtypes and shapes must have the same length")
        return self


class LeaveBody(BaseModel):
    """POST /destroy_weights_update_group"""

    model_config = ConfigDict(extra="forbid", strict=True)

    group_name: Text = "weight_update_group"


def add_transfers(app: FastAPI, receiving: Receiving, publish: Callable[[Iterable[tuple[str, Any]]], None]) -> None:
    """Adds the three paths to a chat app. `publish` installs weights in the first model's engine."""

    async def join(body: GroupBody) -> Response:
        meeting = Meeting(body.group_name, body.world_size, body.backend, body.master_address, body.master_port)
        await asyncio.to_thread(receiving.join, meeting, body.rank_offset)
        return _done(f"joined {body.group_name}")

    async def receive(body: DistributedBody) -> Response:
        forms = list(zip(body.names, body.dtypes, body.shapes, strict=True))
        weights = await asyncio.to_thread(receiving.receive, body.group_name, forms)
        version = body.weight_version or f"part of {body.group_name}"
        await app.state.update(lambda: publish(weights.items()), version)
        return _done(f"received {len(forms)} weights")

    async def leave(body: LeaveBody) -> Response:
        await asyncio.to_thread(receiving.leave, body.group_name)
        return _done(f"left {body.group_name}")

    for path, handler in (
        ("/init_weights_update_group", join),
        ("/update_weights_from_distributed", receive),
        ("/destroy_weights_update_group", leave),
    ):
        app.add_api_route(path, handler, methods=["POST"], response_model=None, responses=SENT)


def _done(message: str) -> JSONResponse:
    return JSONResponse({"success": True, "message": message})
