"""Chat and completions over HTTP, in OpenAI's format, on any engine that can be driven step by step."""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from togi.core.errors import InputError, StageError
from togi.core.protocols import Request, TextLogprobs, Tokenizer
from togi.core.records import Completion
from togi.core.seeds import derive
from togi.serve.app import SENT, Served, error_value, gone, new_app, refusals, unless_gone
from togi.serve.bodies import Body, ChatBody, CompletionBody, Sampled, TokenizeBody, WeightsBody
from togi.serve.engine_loop import EngineLoop, SteppingEngine
from togi.serve.limits import Counts, Limits
from togi.serve.pages import add_pages
from togi.serve.shapes import (
    REASONS,
    chat_logprobs,
    completion_logprobs,
    echoed_logprobs,
    joined_logprobs,
    stop_reason,
    text_of,
    usage,
)
from togi.serve.texts import Texts
from togi.text.template import Template

log = logging.getLogger(__name__)

NO_LIMIT = 2**31
NOTHING = Completion(text="", stop="length")
"""The completion of a prompt that is only read."""

ANSWERED = {
    200: {"content": {"text/event-stream": {}}},
    **SENT,
    **refusals(s429="Too many requests are waiting.", s504="The answer took too long."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A generating model: its engine, tokenizer, template and end-of-text token, if it has one. `read` returns the
    log-probabilities of a text for `echo`, given its token ids and the number of top tokens per position. `weights`
    reads the weights in a folder, by their names in the engine, and raises InputError if the folder does not fit;
    without it the model accepts no updates. `reused` counts the prompt tokens that the engine did not compute again."""

    engine: SteppingEngine
    tokenizer: Tokenizer
    template: Template
    end_of_text: int | None = None
    read: Callable[[Sequence[int], int], TextLogprobs] | None = None
    weights: Callable[[str], Mapping[str, Any]] | None = None
    reused: Callable[[], int] = lambda: 0


def chat_app(
    served: Served,
    speaker: Speaker,
    died: Callable[[], None] = lambda: None,
    beside: Sequence[tuple[Served, Speaker]] = (),
) -> FastAPI:
    """The app that serves `speaker` and the further models in `beside`; `died` is called if an engine fails."""
    models = [_Model(*each) for each in ((served, speaker), *beside)]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for model in models:
            model.loop.start(died)
        yield
        for model in models:
            model.texts.close()
            await asyncio.to_thread(model.loop.stop)

    app = new_app(served, lambda: not any(model.loop.ended for model in models), lifespan, [each for each, _ in beside])
    routes = _Routes(models, served.limits, app.state.counts)
    for model in models:
        app.state.counts.reused.labels(model.served.name).set_function(model.speaker.reused)
    app.state.raise_failure = routes.raise_failure
    app.state.update = models[0].loop.update
    asked: dict[str, Any] = {"methods": ["POST"], "response_model": None}
    app.add_api_route("/v1/chat/completions", routes.chat, responses=ANSWERED, **asked)
    app.add_api_route("/v1/completions", routes.completions, responses=ANSWERED, **asked)
    app.add_api_route("/tokenize", routes.tokenize, responses=SENT, **asked)
    if speaker.weights is not None:
        app.add_api_route("/update_weights_from_disk", routes.take_weights, responses=SENT, **asked)
    add_pages(app)
    return app


class _Routes:
    """One handler per path; the body names the model."""

    def __init__(self, models: Sequence["_Model"], limits: Limits, counts: Counts) -> None:
        self._models = {model.served.name: model for model in models}
        self._limits = limits
        self._counts = counts

    def raise_failure(self) -> None:
        """Raises the error of an engine, if one failed."""
        for model in self._models.values():
            model.loop.raise_failure()

    async def chat(self, body: ChatBody, http: HttpRequest) -> Response:
        """POST /v1/chat/completions"""
        return await self._answered(body, http, lambda model: model.chat(body, self._counts))

    async def completions(self, body: CompletionBody, http: HttpRequest) -> Response:
        """POST /v1/completions"""
        return await self._answered(body, http, lambda model: model.completions(body, self._counts))

    async def tokenize(self, body: TokenizeBody) -> Response:
        """POST /tokenize"""
        return await self._model(body).tokenize(body)

    async def take_weights(self, body: WeightsBody) -> Response:
        """POST /update_weights_from_disk"""
        if body.model is None and len(self._models) > 1:
            raise InputError(f"model: set it to the one that gets the weights: {', '.join(self._models)}")
        name = next(iter(self._models)) if body.model is None else body.model
        if (model := self._models.get(name)) is None:
            raise HTTPException(404, f"the model {name!r} is not served here")
        await model.take_weights(body.model_path, body.weight_version)
        return JSONResponse({"success": True, "message": f"{name} now has the weights of {body.model_path}"})

    def _model(self, body: Body) -> "_Model":
        """The model that a body names. Raises HTTPException if it is not served, or too many requests are waiting."""
        model = self._models.get(body.model)
        if model is None:
            names = " or ".join(repr(name) for name in self._models)
            raise HTTPException(404, f"the model {body.model!r} is not served here; this is {names}")
        if model.waiting >= self._limits.waiting:
            raise HTTPException(
                429, f"{model.waiting} requests are in progress, the most that this server accepts; retry later",
                {"Retry-After": "1"},
            )  # fmt: skip
        return model

    async def _answered(
        self, body: Sampled, http: HttpRequest, work: Callable[["_Model"], Awaitable[Response]]
    ) -> Response:
        if body.stream and http.scope["http_version"] == "1.0":
            raise InputError("stream: HTTP/1.0 cannot carry a stream; use HTTP/1.1, or leave stream out")
        found = await unless_gone(http, work(self._model(body)), self._limits.seconds)
        return gone() if found is None else found


class _Model:
    """A served model, which answers in OpenAI's format."""

    def __init__(self, served: Served, speaker: Speaker) -> None:
        self.served = served
        self.speaker = speaker
        self.loop = EngineLoop(speaker.engine)
        self.texts = Texts(speaker.tokenizer, speaker.template, served.limit, served.default_system)
        self._numbers = itertools.count()
        self._warned = False

    @property
    def waiting(self) -> int:
        """The number of requests without a complete answer."""
        return self.loop.waiting + self.texts.waiting

    async def chat(self, body: ChatBody, counts: Counts) -> Response:
        """The answer to a conversation."""
        if body.top_logprobs is not None and not body.logprobs:
            raise InputError("top_logprobs needs logprobs: true")
        ids = await self.texts.of_messages([turn.message for turn in body.messages])
        request, about = self._request(body, ids, body.top_logprobs or 0, ()), self._about("chat.completion")
        if body.stream:
            return self._stream(request, body, {**about, "object": "chat.completion.chunk"}, _delta, counts)
        found = await self.loop.answers([request])
        choices = [self._chat_choice(body, index, one) for index, one in enumerate(found.completions[0])]
        told = {"prompt_token_ids": ids} if body.return_token_ids else {}
        used = self._used([len(ids)], found.completions, counts)
        return JSONResponse({**about, "choices": choices, "usage": used, **told, **_version(found.version)})

    async def completions(self, body: CompletionBody, counts: Counts) -> Response:
        """The continuation of texts."""
        ends = () if body.ignore_eos or self.speaker.end_of_text is None else (self.speaker.end_of_text,)
        prompts = await self._prompts(body.prompt)
        requests = [self._request(body, ids, body.logprobs or 0, ends) for ids in prompts]
        about = self._about("text_completion")
        if body.stream:
            if len(prompts) > 1 or body.echo:
                raise InputError("stream: only for one prompt, without echo; send each prompt in its own request")
            return self._stream(requests[0], body, about, _text, counts)
        if not body.writes:
            self._check_settings(requests[0])
        found = await self.loop.answers(requests if body.writes else [], self._reading(body, prompts))
        groups = found.completions if body.writes else [[NOTHING] * each.params.n for each in requests]
        read = found.read or [None] * len(prompts)
        every = [(place, one) for place, group in enumerate(groups) for one in group]
        choices = [
            self._text_choice(body, index, prompts[place], one, read[place]) for index, (place, one) in enumerate(every)
        ]
        used = self._used([len(ids) for ids in prompts], groups, counts)
        return JSONResponse({**about, "choices": choices, "usage": used, **_version(found.version)})

    async def tokenize(self, body: TokenizeBody) -> Response:
        """The tokens of a text or of a conversation, of any length."""
        if body.messages is not None:
            ids = await self.texts.of_messages([turn.message for turn in body.messages], bounded=False)
        else:
            special = body.add_special_tokens
            (ids,) = await self.texts.of_texts([body.prompt or ""], bounded=False, special=special)
        return JSONResponse({"count": len(ids), "max_model_len": self.served.limit, "tokens": ids})

    async def take_weights(self, folder: str, version: str | None) -> None:
        """Reads weights while requests are answered, and installs them after those in progress; later requests wait."""
        assert self.speaker.weights is not None
        weights = await asyncio.to_thread(self.speaker.weights, folder)

        await self.loop.update(lambda: self.speaker.engine.publish(weights.items()), version or folder)

    def _reading(
        self, body: CompletionBody, prompts: Sequence[Sequence[int]]
    ) -> Callable[[], Sequence[TextLogprobs]] | None:
        """Computes the log-probabilities of the prompts; None if the body does not ask for them."""
        top, read = body.logprobs, self.speaker.read
        if not body.echo or top is None:
            return None
        if read is None:
            raise InputError("echo: this server returns no log-probabilities of prompts; leave out logprobs or echo")
        longest = max(map(len, prompts))
        if self.served.limit is not None and longest > self.served.limit:
            raise InputError(
                f"prompt: it has {longest} tokens, but the model's context is {self.served.limit}; shorten it"
            )
        return lambda: [read(ids, top) for ids in prompts]

    def _used(self, prompts: Sequence[int], found: Sequence[Sequence[Completion]], counts: Counts) -> dict[str, int]:
        used = usage(prompts, found)
        counts.used(self.served.name, used)
        return used

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _prompts(self, prompt: str | list[int] | list[str] | list[list[int]]) -> list[list[int]]:
        if not prompt:
            raise InputError("prompt: it is empty; give a text or token ids")
        several: Any = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        if len(several) > self.served.limits.waiting:
            raise InputError(f"prompt: {len(several)} prompts in one request; at most {self.served.limits.waiting}")
        found = await self.texts.of_texts(several) if isinstance(several[0], str) else several
        for ids in found:
            if not ids:
                raise InputError("prompt: one prompt has no tokens; it needs at least one")
            self.served.check_ids(ids)
        return found

    def _request(self, body: Sampled, ids: Sequence[int], logprobs: int, ends: tuple[int, ...]) -> Request:
        room = NO_LIMIT if self.served.limit is None else self.served.limit - len(ids)
        params = body.params(room, logprobs, self.served.sampling)
        self._warn(params.temperature)
        own = derive("serve", next(self._numbers))
        return Request(
            prompt_ids=tuple(ids),
            params=params,
            seeds=body.seeds(own, params.n),
            stream=bool(body.stream),
            end_ids=(*ends, *(body.stop_token_ids or ())),
        )

    def _warn(self, temperature: float) -> None:
        """Logs once what the card of the model's preset says against a temperature."""
        sampling = self.served.sampling
        warning = None if self._warned or sampling is None else sampling.warning(temperature)
        if warning is not None:
            self._warned = True
            log.warning("%s: %s; this is said once", self.served.name, warning)

    def _check_settings(self, request: Request) -> None:
        """Raises InputError for the sampling settings of a request that generates nothing, if they are not allowed."""
        params = replace(request.params, max_tokens=1)
        self.loop.engine.check(replace(request, prompt_ids=request.prompt_ids[:1], params=params))

    # --- answers ------------------------------------------------------------------------------------------------------

    def _about(self, kind: str) -> dict[str, Any]:
        now = time.time()
        return {"id": f"togi-{time.time_ns():x}", "object": kind, "created": int(now), "model": self.served.name}

    def _decode(self, ids: Sequence[int]) -> str:
        return self.speaker.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _piece(self, token: int) -> str:
        return self._decode([token])

    def _end(self, body: Sampled, one: Completion) -> dict[str, Any]:
        """The finish reason of an answer; `stop_reason` is vLLM's addition."""
        return {"finish_reason": REASONS[one.stop], "stop_reason": stop_reason(one, body.stops, self._decode)}

    def _chat_choice(self, body: ChatBody, index: int, one: Completion) -> dict[str, Any]:
        text = text_of(one, self.speaker.template.terminator)
        told = {"token_ids": list(one.token_ids)} if body.return_token_ids else {}
        return {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": chat_logprobs(one, self._piece) if body.logprobs else None,
            **self._end(body, one),
            **told,
        }

    def _text_choice(
        self, body: CompletionBody, index: int, ids: Sequence[int], one: Completion, read: TextLogprobs | None
    ) -> dict[str, Any]:
        told = {"token_ids": list(one.token_ids), "prompt_token_ids": list(ids)} if body.return_token_ids else {}
        top = body.logprobs
        logprobs = None if top is None else completion_logprobs(one, self._piece, top)
        if read is not None and logprobs is not None:
            logprobs = joined_logprobs(echoed_logprobs(ids, read, self._piece, top or 0), logprobs)
        return {
            "index": index,
            "text": (self._decode(ids) if body.echo else "") + text_of(one, self.speaker.template.terminator),
            "logprobs": logprobs,
            **self._end(body, one),
            **told,
        }

    # --- streams ------------------------------------------------------------------------------------------------------

    def _stream(
        self,
        request: Request,
        body: ChatBody | CompletionBody,
        about: dict[str, Any],
        piece: "_Piece",
        counts: Counts,
    ) -> Response:
        wanted = body.logprobs is not None and body.logprobs is not False  # 0 asks for those of the sampled tokens
        if wanted or body.return_token_ids:
            raise InputError("stream: log-probabilities and token ids are not streamed; leave stream out")
        self.loop.engine.check(request)
        options = body.stream_options
        return StreamingResponse(
            self._chunks(request, about, piece, options is not None and options.include_usage, counts),
            media_type="text/event-stream",
        )

    async def _chunks(
        self, request: Request, about: dict[str, Any], piece: "_Piece", with_usage: bool, counts: Counts
    ) -> AsyncIterator[str]:
        ended: list[Completion] = []
        version: dict[str, str] = {}
        for index in range(request.params.n):
            yield _sent({**about, "choices": [piece(index, "", None)]})
        try:
            async with aclosing(
                self.loop.events(request, self.served.limits.seconds, lambda mark: version.update(_version(mark)))
            ) as events:
                async for event in events:
                    done = event.completion
                    if done is not None:
                        ended.append(done)
                    reason = None if done is None else REASONS[done.stop]
                    yield _sent({**about, "choices": [piece(event.index, event.text, reason)], **version})
        except (TimeoutError, StageError) as failed:  # as an event, because the status has been sent already
            yield _sent(error_value(504 if isinstance(failed, TimeoutError) else 500, str(failed)))
            return
        used = self._used([len(request.prompt_ids)], [ended], counts)
        if with_usage:
            yield _sent({**about, "choices": [], "usage": used})
        yield "data: [DONE]\n\n"


_Piece = Callable[[int, str, str | None], Mapping[str, Any]]


def _delta(index: int, text: str, reason: str | None) -> dict[str, Any]:
    said = {"role": "assistant", "content": text}
    return {"index": index, "delta": said, "logprobs": None, "finish_reason": reason}


def _text(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _version(mark: str | None) -> dict[str, str]:
    """The version of the weights that computed an answer, once they were updated."""
    return {} if mark is None else {"weight_version": mark}


def _sent(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
