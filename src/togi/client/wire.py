"""Requests as servers read them, and their replies as answers: one table of what each protocol speaks.

    request         openai                 vllm                      sglang                     togi
    chat            /v1/chat/completions   the same, with top_k ...  the same, with top_k ...   the same, with top_k ...
    text            /v1/completions        the same, with top_k ...  the same, with top_k ...   the same, with top_k ...
    token ids       -                      /v1/completions           /generate                  /v1/completions
    scores          -                      /classify, /pooling       /classify                  /v1/scores
    pairs of texts  -                      /score                    -                          -
    embeddings      /v1/embeddings         the same                  the same                   the same

A reply is checked as it is read: as many choices as were asked for and in their order, each with an end and the
log-probabilities that were asked for, numbers that are finite. `Broken` says what is wrong with it.
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
from togi.client.wire_base import Broken, Call, count
from togi.core.errors import InputError

EXTRAS = ("top_k", "min_p", "repetition_penalty")


@dataclass(slots=True)
class Dialect:
    """What is known of a server: its protocol, and how it wants the few things that differ between servers of one.

    `without` names fields of requests that it refuses and that togi can do without: schema, seed, stop.
    """

    speaks: str = "openai"
    max_tokens: str = "max_tokens"
    score_path: str = "/classify"
    context: int | None = None
    version: str = ""
    without: set[str] = field(default_factory=set)

    def call(self, request: AnyRequest, model: str) -> Call:
        """The HTTP call for a request. Raises InputError for one that the protocol has no words for."""
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
        """The answer that a reply holds. Raises Broken."""
        if isinstance(request, ChatRequest):
            return wire_texts.read_chat(request, value)
        if isinstance(request, CompletionRequest):
            native = self.speaks == "sglang" and not isinstance(request.prompt, str)
            return (wire_texts.read_generate if native else wire_texts.read_completion)(request, value)
        if isinstance(request, EmbedRequest):
            return wire_numbers.read_embeddings(request, value)
        return wire_numbers.read_scores(request, value, self.speaks, self.score_path)

    def usage(self, value: Any) -> Tokens | None:
        """The tokens that a reply says it used, None where it does not say."""
        return usage_of(value)

    def _reduced(self, request: Generation) -> Generation:
        """The request without what the server refuses."""
        if "schema" in self.without and isinstance(request, ChatRequest):
            request = replace(request, schema=None)
        if "seed" in self.without:
            request = replace(request, seed=None)
        if "stop" in self.without:
            request = replace(request, params=replace(request.params, stop=()))
        return request

    def _refuse(self, request: AnyRequest) -> None:
        """What the protocol cannot say is refused, never left out."""
        if self.speaks == "openai" and (why := _beyond_openai(request)):
            raise InputError(
                f"the protocol openai has no {why}; set protocol to what the server speaks (vllm, sglang, togi)"
            )
        if isinstance(request, ScoreRequest):
            pairs = any(isinstance(item, TextPair) for item in request.items)
            if pairs and self.speaks != "vllm":
                raise InputError(f"the protocol {self.speaks} scores no pairs of texts; vllm does")


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
    """`usage` of a reply in OpenAI's form, or the sums of SGLang's `meta_info`."""
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


__all__ = ["Broken", "Call", "Dialect", "usage_of"]
