"""Ids and seeds: every random number in togi is derived from the recipe's seed by `derive`."""

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-like value, independent of key order."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def derive(*parts: Any) -> int:
    """A seed in [0, 2**63) from any JSON-like parts: `derive(seed, "sample", step, prompt_id, index)`."""
    return int(digest(parts)[:16], 16) >> 1


def make_id(producer: str, parents: tuple[str, ...], index: int) -> str:
    """The id of a record that a stage made: 16 hex digits of sha256 over producer, parents and index."""
    return digest([producer, list(parents), index])[:16]


def content_id(content: Any, ordinal: int = 0) -> str:
    """The id of an imported record, a hash of its content; `ordinal` distinguishes equal rows."""
    return digest([content, ordinal] if ordinal else [content])[:16]
