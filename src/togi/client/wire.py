"""Converts requests to HTTP calls and replies to answers. The paths by protocol:

    request         openai                 vllm                      sglang                     togi
    chat            /v1/chat/completions   the same, with top_k ...  the same, with top_k ...   the same, with top_k ...
    text            /v1/completions        the same, with top_k ...  the same, with top_k ...   the same, with top_k ...
    token ids       -                      /v1/completions           /generate                  /v1/completions
    scores          -                      /classify, /pooling       /classify                  /v1/scores
    pairs of texts  -                      /score                    -                          -
    embeddings      /v1/embeddings         the same                  the same                   the same

A reply is checked when it is read: it must have the requested number of choices in order, each with a finish reason
and the requested log-probabilities, and its numbers must be finite. Otherwise `Broken` describes the fault.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from togi.client import wire_numbers, wire_texts
from togi.client.answers import Whole
from togi.client.endpoint import Tokens
from togi.client.requests import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Generation,
    ScoreRequest,
    TextPair,
)
from togi.client.wire_base import Call, count
from togi.core.errors import InputError

EXTRAS = ("top_k", "min_p", "repetition_penalty")


@dataclass(slots=True)
class Dialect:
    """The protocol of a server, and the few details that differ between servers of one protocol.

    `without` names request fields that the server refuses and that togi can do without: schema, seed, stop. `stored`:
    it only returns stored answers, so it cannot answer test requests.
    """

    speaks: str = "openai"
    max_tokens: str = "max_tokens"
    score_path: str = "/classify"
    context: int | None = None
    without: set[str] = field(default_factory=set)
    stored: bool = False

    def call(self, request: AnyRequest, model: str) -> Call:
        """The HTTP call for a request. Raises InputError if the protocol cannot express the request."""
        self._refuse(request)
        if isinstance(request, Generation):
            request = self._reduced(request)
        if isinstance(request, ChatRequest):
            return wire_texts.chat(request, model, self.speaks, self.max_tokens)
        if isinstance(request, CompletionRequest):
            native = self.speaks == "sglang" and not isinstance(request.prompt, str)
            return wire_texts.generate(request) if native else wire_texts.completion(request, model, self.speaks)
        if isinstance(request, EmbedRequest):
            return wire_numbers.embeddings(request, model)
        return wire_numbers.scores(request, model, self.speaks, self.score_path)

    def read(self, request: AnyRequest, value: Any) -> Whole:
        """The answer in a reply. Raises Broken."""
        if isinstance(request, ChatRequest):
            return wire_texts.read_chat(request, value)
        if isinstance(request, CompletionRequest):
            native = self.speaks == "sglang" and not isinstance(request.prompt, str)
            return (wire_texts.read_generate if native else wire_texts.read_completion)(request, value)
        if isinstance(request, EmbedRequest):
            return wire_numbers.read_embeddings(request, value)
        return wire_numbers.read_scores(request, value, self.speaks, self.score_path)

    def _reduced(self, request: Generation) -> Generation:
        """The request without the fields that the server refuses."""
        if "schema" in self.without and isinstance(request, ChatRequest):
            request = replace(request, schema=None)
        if "seed" in self.without:
            request = replace(request, seed=None)
        if "stop" in self.without:
            request = replace(request, params=replace(request.params, stop=()))
        return request

    def _refuse(self, request: AnyRequest) -> None:
        """Raises InputError for what the protocol cannot express, since it must not be dropped silently."""
        if self.speaks == "openai" and (why := _beyond_openai(request)):
            raise InputError(
                f"the protocol openai has no {why}; set protocol to that of the server (vllm, sglang, togi)"
            )
        if isinstance(request, ScoreRequest):
            pairs = any(isinstance(item, TextPair) for item in request.items)
            if pairs and self.speaks != "vllm":
                raise InputError(f"the protocol {self.speaks} cannot score pairs of texts; vllm can")


def _beyond_openai(request: AnyRequest) -> str:
    if isinstance(request, ScoreRequest):
        return "scores"
    if isinstance(request, CompletionRequest) and not isinstance(request.prompt, str):
        return "token ids"
    if isinstance(request, ChatRequest | CompletionRequest):
        neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        return ", ".join(name for name in EXTRAS if getattr(request.params, name) != neutral[name])
    return ""


def usage_of(value: Any) -> Tokens | None:
    """The tokens that a reply reports as used: `usage` in OpenAI's form, or the sum over SGLang's `meta_info`. None if
    it reports none."""
    parts = value if isinstance(value, list) else [value]
    total = Tokens()
    for part in parts:
        said = part.get("usage", part.get("meta_info")) if isinstance(part, dict) else None
        if not isinstance(said, dict):
            return None
        read, written = count(said.get("prompt_tokens")), count(said.get("completion_tokens", 0))
        if read is None or written is None:
            return None
        total += Tokens(read, written)
    return total
