"""The tokens of requests to a server, by the tokenizer that the recipe declares: what budgets and rates reserve.

A request must not use more than is reserved for it, so every doubt is rounded up.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from togi.client.requests import AnyRequest, ChatRequest, CompletionRequest, EmbedRequest, TextPair
from togi.core.errors import InputError
from togi.core.protocols import Tokenizer
from togi.core.records import Message
from togi.data.values import HALF
from togi.text.render import render_prompt, render_text
from togi.text.template import Template

AROUND = 64
"""Tokens reserved per turn, and once more per conversation, for what an unknown template writes around the contents:
more than the UTF-8 bytes that any built-in template writes there."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Counts the prompt tokens of a request. Conversations are rendered with `template`; if there is none, or if it
    refuses one, their contents are counted, and AROUND for each turn."""

    tokenizer: Tokenizer
    template: Template | None

    def __call__(self, request: AnyRequest) -> int:
        if isinstance(request, ChatRequest):
            schema = 0 if request.schema is None else self._text(json.dumps(request.schema, ensure_ascii=False))
            return self._conversation(request.messages, waits=True) + schema
        if isinstance(request, CompletionRequest):
            return self._item(request.prompt)
        items = request.texts if isinstance(request, EmbedRequest) else request.items
        return sum(map(self._item, items))

    def _item(self, item: Any) -> int:
        """The tokens of a text, of ids, of a conversation with its last answer, or of a pair of texts."""
        if isinstance(item, str):
            return self._text(item)
        if isinstance(item, TextPair):
            return self._text(item.query) + self._text(item.document)
        return self._conversation(item, waits=False) if item and isinstance(item[0], Message) else len(item)

    def _text(self, text: str) -> int:
        """The tokens of a text, with those that the tokenizer puts around it."""
        return len(self.tokenizer(HALF.sub("\ufffd", text), add_special_tokens=True)["input_ids"])

    def _conversation(self, messages: Sequence[Message], *, waits: bool) -> int:
        """The tokens of a conversation; `waits`: it ends with the generation prompt."""
        if self.template is not None:
            try:
                render = render_prompt if waits else render_text
                return len(render(self.template, self.tokenizer, messages))
            except InputError:  # the server's own template may accept it
                pass
        return AROUND + sum(AROUND + self._contents(message) for message in messages)

    def _contents(self, message: Message) -> int:
        extra = self._text(json.dumps(message.extra, ensure_ascii=False)) if message.extra else 0
        return self._text(message.role) + self._text(message.content) + extra
