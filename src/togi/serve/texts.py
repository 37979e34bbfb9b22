"""Token ids of texts, computed in threads, so that a long text does not hold up the server's other requests."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tokenizers.pre_tokenizers import ByteLevel

from togi.core.errors import InputError
from togi.core.protocols import Tokenizer
from togi.core.records import Message
from togi.text.render import render_prompt
from togi.text.template import Template

LONG = 2**16
"""Characters of a request above which it waits in a line of its own, so that short requests do not wait for it."""
COMPOSED = 4
"""The most characters that the normal form NFC makes one of."""
KEEPING = ("ByteLevel", "Digits", "Metaspace", "NFC", "Prepend")
"""The steps of a tokenizer that drop no character."""

T = TypeVar("T")


class Texts:
    """The tokenizer and the template of a served model, whose context has `limit` tokens, and the system prompt of
    conversations without one ("" for none). `waiting` is the number of requests whose texts are not read yet."""

    def __init__(self, tokenizer: Tokenizer, template: Template, limit: int | None, system: str = "") -> None:
        self.waiting = 0
        self._system = system
        self._tokenizer, self._template = tokenizer, template
        self._bounded = _Bounded(tokenizer, limit)
        self._short, self._long = ThreadPoolExecutor(2, "texts"), ThreadPoolExecutor(1, "long-texts")

    async def of_messages(self, messages: Sequence[Message], *, bounded: bool = True) -> list[int]:
        """The ids of a conversation that waits for an answer. Raises InputError if it cannot be rendered, or if
        `bounded` and it cannot fit the context."""
        tokenizer = self._bounded if bounded else self._tokenizer
        if self._system and all(message.role != "system" for message in messages):
            messages = [Message("system", self._system), *messages]
        size = sum(len(message.content) for message in messages)
        return await self._beside(size, lambda: render_prompt(self._template, tokenizer, messages))

    async def of_texts(self, texts: Sequence[str], *, bounded: bool = True, special: bool = True) -> list[list[int]]:
        """The ids of texts, with the special tokens that the tokenizer adds unless `special` is false. Raises
        InputError if `bounded` and one cannot fit the context."""
        tokenizer = self._bounded if bounded else self._tokenizer
        return await self._beside(
            sum(map(len, texts)),
            lambda: [list(tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts],
        )

    async def _beside(self, size: int, work: Callable[[], T]) -> T:
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._long if size > LONG else self._short, work)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Drops the texts that wait."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)


class _Bounded:
    """A tokenizer that refuses a text before it is read, if its length alone shows that it cannot fit the context."""

    def __init__(self, tokenizer: Tokenizer, limit: int | None) -> None:
        self._tokenizer, self._limit = tokenizer, limit
        self._most = None if limit is None else longest_text(tokenizer, limit)

    def __call__(self, text: str, **options: Any) -> Any:
        if self._most is not None and len(text) > self._most:
            raise InputError(
                f"prompt: it has {len(text):,} characters, but the model's context of {self._limit:,} tokens can hold "
                f"{self._most:,} at most; shorten it"
            )
        return self._tokenizer(text, **options)

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return self._tokenizer.decode(ids, **options)


def longest_text(tokenizer: Any, tokens: int) -> int | None:
    """The most characters that `tokens` tokens can stand for, or None if that is unknown, because the tokenizer may
    drop characters or stand for many by one token (white space, unknown words)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    made = json.loads(backend.to_str())
    vocabulary = tokenizer.get_vocab()
    steps = [*_steps(made["normalizer"]), *_steps(made["pre_tokenizer"])]
    if made["model"]["type"] != "BPE" or not _knows_bytes(steps, vocabulary) or not all(map(_keeps, steps)):
        return None
    if made["truncation"] or any(token["lstrip"] or token["rstrip"] for token in made["added_tokens"]):
        return None
    composed = COMPOSED if any(step["type"] == "NFC" for step in steps) else 1
    return tokens * max(map(len, vocabulary)) * composed


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of its steps."""
    if step is None:
        return []
    inner = step.get("normalizers", step.get("pretokenizers"))
    return [step] if inner is None else [each for part in inner for each in _steps(part)]


def _knows_bytes(steps: Sequence[Mapping[str, Any]], vocabulary: Mapping[str, int]) -> bool:
    """Whether every character has tokens: one for each byte."""
    level = any(step["type"] == "ByteLevel" for step in steps)
    return all(each in vocabulary for each in (ByteLevel.alphabet() if level else (f"<0x{i:02X}>" for i in range(256))))


def _keeps(step: Mapping[str, Any]) -> bool:
    """Whether a step drops no character."""
    if step["type"] == "Split":
        return step["behavior"] != "Removed"
    if step["type"] == "Replace":
        return len(step["content"]) >= len(step["pattern"].get("String", step["content"] + "."))
    return step["type"] in KEEPING
