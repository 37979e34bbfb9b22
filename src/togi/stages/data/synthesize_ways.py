"""The methods of `synthesize`: which settings each reads, what it produces, and its defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Method = Literal["few_shot", "magpie", "evolve", "rewrite", "qa", "grounded", "cot"]


@dataclass(frozen=True, slots=True)
class Way:
    """A method: the settings that only some methods read, the kinds of records it can produce (the first is the
    default), and its sampling defaults."""

    reads: tuple[str, ...]
    kinds: tuple[str, ...]
    source: str = ""
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 256
    max_chars: int = 2000
    tries: int = 4
    batch: int = 64


_FEW = ("samples_per_prompt",)
_ASKED = ("prompt",)
_TEXTS = (*_ASKED, "examples", "shots", "chunk_chars", "long_documents", "min_support")
WAYS: Mapping[Method, Way] = {
    "few_shot": Way((*_FEW, "style", "shots"), ("prompts",), "examples", 0.9, 0.95, 48, 400, 1, 8),
    "magpie": Way(
        (*_FEW, "system", "answer_tokens", "one_line"), ("prompts", "chats"), "", 1.0, 1.0, 128, 400, batch=8
    ),
    "evolve": Way(_ASKED, ("prompts",), "input"),
    "rewrite": Way(_ASKED, ("prompts",), "input"),
    "qa": Way((*_TEXTS, "pairs_per_text", "layout"), ("documents", "chats"), "documents"),
    "grounded": Way((*_TEXTS, "distractors", "unanswerable", "no_answer", "embedder"), ("chats",), "documents"),
    "cot": Way((*_ASKED, "system", "check_answer"), ("chats", "prompts"), "input", max_tokens=512),
}
