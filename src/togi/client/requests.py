"""Requests to a model on a server, as values.

`request_key` identifies a request: it hashes the content and the model and revision that the recipe declares, never a
URL, a key or a limit. `index` distinguishes requests with the same content: the second sample of a prompt, or the
second try of a judge whose first answer could not be parsed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from togi.core.records import Message, SamplingParams

Ids = tuple[int, ...]
PLAIN = SamplingParams()
SAMPLED = ("top_p", "top_k", "min_p", "repetition_penalty", "logprobs")
"""Sampling settings that are left out of a request, and of its key, when they have no effect."""
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to answer `params.n` times; the server renders it with the model's chat template.

    `params.seed` is ignored: the server is sent `seed`, or no seed if it is None. If the server returns one choice at
    a time, choice i of a seeded request is asked for with seed + i. `schema` is a JSON schema that the answer must
    follow. Any role is allowed: the server's template decides which roles it accepts.
    """

    messages: tuple[Message, ...]
    params: SamplingParams
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    index: int = 0

    kind = "chat"

    def content(self) -> dict[str, Any]:
        """The content of the request, as a JSON value."""
        schema = {} if self.schema is None else {"schema": self.schema}
        return {"messages": [message_json(message) for message in self.messages], **_sampling(self), **schema}

    def prompt_bytes(self) -> int:
        """UTF-8 bytes of the conversation: an upper bound of its tokens, without those that the template adds."""
        return sum(_message_bytes(message) for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A text, or token ids, to continue `params.n` times without a chat template. The answer to ids contains ids."""

    prompt: str | Ids
    params: SamplingParams
    seed: int | None = None
    index: int = 0

    kind = "completion"

    def content(self) -> dict[str, Any]:
        """The content of the request, as a JSON value."""
        return {"prompt": self.prompt, **_sampling(self)}

    def prompt_bytes(self) -> int:
        """The prompt's ids, or its UTF-8 bytes."""
        return _size(self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Texts for a reward model to score as one batch: rendered texts or their token ids; conversations, if the server
    is togi; pairs of a query and a document, if it is vLLM."""

    items: tuple["str | Ids | tuple[Message, ...] | TextPair", ...]
    index: int = 0

    kind = "score"

    def content(self) -> dict[str, Any]:
        """The content of the request, as a JSON value."""
        return {"items": [item_json(item) for item in self.items]}

    def prompt_bytes(self) -> int:
        """Ids and UTF-8 bytes of all items."""
        return sum(_size(item) for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts to embed."""

    texts: tuple[str, ...]
    index: int = 0

    kind = "embed"

    def content(self) -> dict[str, Any]:
        """The content of the request, as a JSON value."""
        return {"texts": self.texts}

    def prompt_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(map(_size, self.texts))


@dataclass(frozen=True, slots=True)
class TextPair:
    """A query and a document that a cross-encoder scores together."""

    query: str
    document: str


Generation = ChatRequest | CompletionRequest
AnyRequest = ChatRequest | CompletionRequest | ScoreRequest | EmbedRequest


def written_at_most(request: AnyRequest) -> int:
    """The most tokens that the answer can have."""
    return request.params.n * request.params.max_tokens if isinstance(request, Generation) else 0


def request_key(request: AnyRequest, model: str, revision: str) -> bytes:
    """A 32-byte hash of a request's content, model and revision, without its index."""
    value = [model, revision, request.kind, request.content()]
    text = _canonical(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def single(request: Generation, choice: int) -> Generation:
    """The request for a single choice, for servers that return one at a time."""
    seed = None if request.seed is None else request.seed + choice
    one = replace(request.params, n=1)
    return replace(request, params=one, seed=seed, index=request.index * request.params.n + choice)


def message_json(message: Message) -> dict[str, Any]:
    """A message as the JSON that servers accept."""
    return {"role": message.role, "content": message.content, **message.extra}


def item_json(item: Any) -> Any:
    """An item of a score request, as a JSON value."""
    if isinstance(item, TextPair):
        return {"query": item.query, "document": item.document}
    if isinstance(item, tuple) and item and isinstance(item[0], Message):
        return {"messages": [message_json(message) for message in item]}
    return item


def _sampling(request: Generation) -> dict[str, Any]:
    params = request.params
    said: dict[str, Any] = {"n": params.n, "max_tokens": params.max_tokens, "temperature": params.temperature}
    said |= {name: value for name in SAMPLED if (value := getattr(params, name)) != getattr(PLAIN, name)}
    if params.stop:
        said["stop"] = params.stop
    if request.seed is not None:
        said["seed"] = request.seed
    return said


def _message_bytes(message: Message) -> int:
    extra = json.dumps(message.extra, ensure_ascii=False) if message.extra else ""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in (message.role, message.content, extra))


def _size(item: "str | Sequence[Any] | TextPair") -> int:
    if isinstance(item, str):
        return len(item.encode("utf-8", "surrogatepass"))
    if isinstance(item, TextPair):
        return _size(item.query) + _size(item.document)
    return sum(_message_bytes(part) if isinstance(part, Message) else 1 for part in item)
