"""Embeddings over HTTP at OpenAI's path /v1/embeddings. One request is one batch."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

import numpy as np
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from togi.core.protocols import Embedder
from togi.serve.app import SENT, Served, new_app
from togi.serve.bodies import EmbedBody


class CountingEmbedder(Embedder, Protocol):
    """An `Embedder` that also returns the number of tokens that it read."""

    def embed_counted(self, texts: Sequence[str]) -> tuple[np.ndarray, int]: ...


def embed_app(served: Served, embedder: CountingEmbedder) -> FastAPI:
    """The app that serves `embedder`."""
    thread = ThreadPoolExecutor(1, "embedder")  # one batch after the other

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(thread.shutdown)

    async def embeddings(body: EmbedBody) -> Response:
        """POST /v1/embeddings {model, input: one text or several} -> {data: [{index, embedding}], usage}, in the order
        of the texts. A text that is too long is cut at its end, as with `embedder` in a recipe."""
        served.check_name(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        rows, tokens = await asyncio.get_running_loop().run_in_executor(thread, embedder.embed_counted, texts)
        data = [{"object": "embedding", "index": i, "embedding": _written(body, row)} for i, row in enumerate(rows)]
        used = {"prompt_tokens": tokens, "total_tokens": tokens}
        app.state.counts.used(served.name, {**used, "completion_tokens": 0})
        return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": used})

    app = new_app(served, lambda: True, lifespan)
    app.add_api_route("/v1/embeddings", embeddings, methods=["POST"], response_model=None, responses=SENT)
    return app


def _written(body: EmbedBody, row: np.ndarray) -> Any:
    """A vector as numbers, or as base64 of little-endian float32 if the request asks for that."""
    if body.encoding_format == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
    return row.tolist()
