"""What a model on a server can be asked, as values.

A request is named by `request_key`: the hash of its content and of the model and revision that the recipe declares,
never of a URL, a key or a limit. `index` tells repeated requests of one content apart: the second sample of a prompt,
or the second try of a judge whose first answer could not be read.
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
"""Sampling settings that stay out of a request, and out of its key, while they change nothing."""
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to answer `params.n` times; the server renders it with the model's chat template.

    `params.seed` is not read: `seed` is what a server is sent, None to send none. Choice i of a seeded request is asked
    with seed + i where the server gives one choice at a time. `schema` is a JSON schema that the answer must follow.
    Roles are free: the server's template decides which it knows.
    """

    messages: tuple[Message, ...]
    params: SamplingParams
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    index: int = 0

    kind = "chat"

    def content(self) -> dict[str, Any]:
        """What is asked, as JSON knows it."""
        schema = {} if self.schema is None else {"schema": self.schema}
        return {"messages": [message_json(message) for message in self.messages], **_sampling(self), **schema}

    def prompt_bytes(self) -> int:
        """UTF-8 bytes of the conversation: an upper bound of its tokens, the template's own left out."""
        return sum(_message_bytes(message) for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A text, or token ids, to continue `params.n` times, without a chat template. Ids are answered with ids."""

    prompt: str | Ids
    params: SamplingParams
    seed: int | None = None
    index: int = 0

    kind = "completion"

    def content(self) -> dict[str, Any]:
        """What is asked, as JSON knows it."""
        return {"prompt": self.prompt, **_sampling(self)}

    def prompt_bytes(self) -> int:
        """The prompt's ids, or its UTF-8 bytes."""
        return _size(self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Texts for a reward model to score as one batch: rendered texts or their token ids; conversations, where the
    server is togi's; pairs of a query and a document, where it is vLLM."""

    items: tuple["str | Ids | tuple[Message, ...] | TextPair", ...]
    index: int = 0

    kind = "score"

    def content(self) -> dict[str, Any]:
        """What is asked, as JSON knows it."""
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
        """What is asked, as JSON knows it."""
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
    """Tokens that the answer can hold at most."""
    return request.params.n * request.params.max_tokens if isinstance(request, Generation) else 0


def request_key(request: AnyRequest, model: str, revision: str) -> bytes:
    """32 bytes that name the content of a request to a model at a revision, without its index."""
    value = [model, revision, request.kind, request.content()]
    text = _canonical(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def single(request: Generation, choice: int) -> Generation:
    """The request for one choice of several, for servers that give one at a time."""
    seed = None if request.seed is None else request.seed + choice
    one = replace(request.params, n=1)
    return replace(request, params=one, seed=seed, index=request.index * request.params.n + choice)


def message_json(message: Message) -> dict[str, Any]:
    """A message as servers read it."""
    return {"role": message.role, "content": message.content, **message.extra}


def item_json(item: Any) -> Any:
    """An item of a score request as JSON knows it."""
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
