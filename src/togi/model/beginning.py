"""The first token ids of a long text, without reading the rest of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

READ = 32
"""Characters of a text to read at first, for each token."""
LOCAL = (
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Prepend", "Strip", "StripAccents"),
    *("Digits", "Punctuation"),
)
"""Steps of a tokenizer in which a text before a space does not depend on what follows."""
SPLITTING = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
"""Steps that also end every word at a space; so do ByteLevel with its own pattern, and Metaspace unless told not to."""


def first_ids(tokenizer: Any, text: str, tokens: int) -> list[int]:
    """The ids of `text` with special tokens, cut at its end to `tokens`, as the tokenizer itself cuts it.

    Of a long text only a beginning is read, up to a space, if the tokenizer ends its words there.
    """
    size = READ * tokens
    while size < len(text) and ends_words_at_spaces(tokenizer):
        end = _space(text, size)
        if end:
            found = _cut(tokenizer, text[:end], tokens)
            if len(found) == tokens:
                return found
        size *= 4
    return _cut(tokenizer, text, tokens)


def _cut(tokenizer: Any, text: str, tokens: int) -> list[int]:
    return list(tokenizer(text, truncation=True, max_length=tokens)["input_ids"])


def _space(text: str, size: int) -> int:
    """The last position up to `size` with a space after another character; 0 if there is none."""
    end = text.rfind(" ", 0, size)
    while end > 0 and text[end - 1].isspace():
        end = text.rfind(" ", 0, end)
    return max(end, 0)


def ends_words_at_spaces(tokenizer: Any) -> bool:
    """Whether the ids of a text up to a space are the first ids of the whole text. False for a tokenizer that this
    module does not know."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.truncation_side != "right":
        return False
    made = json.loads(backend.to_str())
    steps = [*_steps(made["normalizer"]), *_steps(made["pre_tokenizer"])]
    marks = [token["content"] for token in made["added_tokens"]]
    if any(char.isspace() for mark in marks for char in mark):
        return False
    return any(map(_splits, steps)) and all(_splits(step) or _local(step) for step in steps)


def _steps(step: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of its steps."""
    if step is None:
        return []
    inner = step.get("normalizers", step.get("pretokenizers"))
    return [step] if inner is None else [each for part in inner for each in _steps(part)]


def _splits(step: Mapping[str, Any]) -> bool:
    kind = step["type"]
    return kind in SPLITTING or (kind == "ByteLevel" and step["use_regex"]) or (kind == "Metaspace" and step["split"])


def _local(step: Mapping[str, Any]) -> bool:
    """Whether a step handles a text before a space alone; runs of spaces may become one."""
    if step["type"] == "Replace":
        return step["pattern"] == {"Regex": " {2,}"}
    return step["type"] in LOCAL or step["type"] == "ByteLevel"
