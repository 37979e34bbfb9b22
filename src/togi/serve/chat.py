"""Chat and completions over HTTP, in OpenAI's shape, on any engine that can be driven step by step."""

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse

from togi.core.errors import InputError
from togi.core.protocols import Request, Tokenizer
from togi.core.records import Completion
from togi.core.seeds import derive
from togi.serve.app import Served, gone, new_app, unless_gone
from togi.serve.bodies import ChatBody, CompletionBody, Sampled, TokenizeBody
from togi.serve.engine_loop import EngineLoop, SteppingEngine
from togi.serve.shapes import REASONS, chat_logprobs, completion_logprobs, stop_reason, text_of, usage
from togi.text.render import render_prompt
from togi.text.template import Template

NO_LIMIT = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A model that writes: its engine, tokenizer and template, and the token that ends its texts if it has one."""

    engine: SteppingEngine
    tokenizer: Tokenizer
    template: Template
    end_of_text: int | None = None


def chat_app(served: Served, speaker: Speaker, died: Callable[[], None] = lambda: None) -> FastAPI:
    """The app that serves `speaker`; `died` is called where its engine fails."""
    loop = EngineLoop(speaker.engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop.start(died)
        yield
        loop.stop()

    app = new_app(served, lambda: not loop.ended, lifespan)
    routes = _Routes(served, speaker, loop)
    app.state.raise_failure = loop.raise_failure
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", routes.completions, methods=["POST"], response_model=None)
    app.add_api_route("/tokenize", routes.tokenize, methods=["POST"], response_model=None)
    return app


class _Routes:
    def __init__(self, served: Served, speaker: Speaker, loop: EngineLoop) -> None:
        self.served = served
        self.speaker = speaker
        self.loop = loop
        self._numbers = itertools.count()

    async def chat(self, body: ChatBody, http: HttpRequest) -> Response:
        """POST /v1/chat/completions"""
        self.served.check_name(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise InputError("top_logprobs needs logprobs: true")
        messages = [turn.message for turn in body.messages]
        ids = render_prompt(self.speaker.template, self.speaker.tokenizer, messages)
        request, about = self._request(body, ids, body.top_logprobs or 0, ()), self._about("chat.completion")
        if body.stream:
            return self._stream(request, body, {**about, "object": "chat.completion.chunk"}, _delta)
        found = await unless_gone(http, self.loop.answers([request]))
        if found is None:
            return gone()
        choices = [self._chat_choice(body, index, one) for index, one in enumerate(found[0])]
        told = {"prompt_token_ids": ids} if body.return_token_ids else {}
        return JSONResponse({**about, "choices": choices, "usage": usage([len(ids)], found), **told})

    async def completions(self, body: CompletionBody, http: HttpRequest) -> Response:
        """POST /v1/completions"""
        self.served.check_name(body.model)
        ends = () if body.ignore_eos or self.speaker.end_of_text is None else (self.speaker.end_of_text,)
        prompts = self._prompts(body.prompt)
        requests = [self._request(body, ids, body.logprobs or 0, ends) for ids in prompts]
        about = self._about("text_completion")
        if body.stream:
            if len(requests) > 1:
                raise InputError("stream: one prompt at a time; send each in a request of its own")
            return self._stream(requests[0], body, about, _text)
        found = await unless_gone(http, self.loop.answers(requests))
        if found is None:
            return gone()
        every = [(ids, one) for ids, group in zip(prompts, found, strict=True) for one in group]
        choices = [self._text_choice(body, index, ids, one) for index, (ids, one) in enumerate(every)]
        counts = [len(ids) for ids in prompts]
        return JSONResponse({**about, "choices": choices, "usage": usage(counts, found)})

    async def tokenize(self, body: TokenizeBody) -> Response:
        """POST /tokenize"""
        self.served.check_name(body.model)
        if body.messages is not None:
            messages = [turn.message for turn in body.messages]
            ids = render_prompt(self.speaker.template, self.speaker.tokenizer, messages)
        else:
            ids = self.speaker.tokenizer(body.prompt or "", add_special_tokens=body.add_special_tokens)["input_ids"]
        return JSONResponse({"count": len(ids), "max_model_len": self.served.limit, "tokens": list(ids)})

    # --- requests -----------------------------------------------------------------------------------------------------

    def _prompts(self, prompt: str | list[int] | list[str] | list[list[int]]) -> list[list[int]]:
        if not prompt:
            raise InputError("prompt: it is empty; give a text or token ids")
        several: Any = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        return [self._ids(each) if isinstance(each, str) else list(each) for each in several]

    def _ids(self, text: str) -> list[int]:
        return list(self.speaker.tokenizer(text, add_special_tokens=True)["input_ids"])

    def _request(self, body: Sampled, ids: Sequence[int], logprobs: int, ends: tuple[int, ...]) -> Request:
        self.served.check_ids(ids)
        room = NO_LIMIT if self.served.limit is None else self.served.limit - len(ids)
        params = body.params(room, logprobs)
        own = derive("serve", next(self._numbers))
        return Request(
            prompt_ids=tuple(ids),
            params=params,
            seeds=body.seeds(own, params.n),
            stream=bool(body.stream),
            end_ids=(*ends, *(body.stop_token_ids or ())),
        )

    # --- answers ------------------------------------------------------------------------------------------------------

    def _about(self, kind: str) -> dict[str, Any]:
        now = time.time()
        return {"id": f"togi-{time.time_ns():x}", "object": kind, "created": int(now), "model": self.served.name}

    def _decode(self, ids: Sequence[int]) -> str:
        return self.speaker.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _piece(self, token: int) -> str:
        return self._decode([token])

    def _end(self, body: Sampled, one: Completion) -> dict[str, Any]:
        """How an answer ended; `stop_reason` is vLLM's."""
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

    def _text_choice(self, body: CompletionBody, index: int, ids: Sequence[int], one: Completion) -> dict[str, Any]:
        told = {"token_ids": list(one.token_ids), "prompt_token_ids": list(ids)} if body.return_token_ids else {}
        return {
            "index": index,
            "text": text_of(one, self.speaker.template.terminator),
            "logprobs": None if body.logprobs is None else completion_logprobs(one, self._piece),
            **self._end(body, one),
            **told,
        }

    # --- streams ------------------------------------------------------------------------------------------------------

    def _stream(
        self, request: Request, body: ChatBody | CompletionBody, about: dict[str, Any], piece: "_Piece"
    ) -> Response:
        if body.logprobs or body.return_token_ids:
            raise InputError("stream: log-probabilities and token ids come with whole answers only; leave stream out")
        self.loop.engine.check(request)
        options = body.stream_options
        return StreamingResponse(
            self._chunks(request, about, piece, options is not None and options.include_usage),
            media_type="text/event-stream",
        )

    async def _chunks(
        self, request: Request, about: dict[str, Any], piece: "_Piece", with_usage: bool
    ) -> AsyncIterator[str]:
        ended: list[Completion] = []
        for index in range(request.params.n):
            yield _sent({**about, "choices": [piece(index, "", None)]})
        async with aclosing(self.loop.events(request)) as events:
            async for event in events:
                done = event.completion
                if done is not None:
                    ended.append(done)
                reason = None if done is None else REASONS[done.stop]
                yield _sent({**about, "choices": [piece(event.index, event.text, reason)]})
        if with_usage:
            yield _sent({**about, "choices": [], "usage": usage([len(request.prompt_ids)], [ended])})
        yield "data: [DONE]\n\n"


_Piece = Callable[[int, str, str | None], Mapping[str, Any]]


def _delta(index: int, text: str, reason: str | None) -> dict[str, Any]:
    said = {"role": "assistant", "content": text}
    return {"index": index, "delta": said, "logprobs": None, "finish_reason": reason}


def _text(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _sent(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
