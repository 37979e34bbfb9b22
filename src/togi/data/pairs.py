"""Builds preference pairs from two answers, and drops those that are no preference."""

from collections.abc import Sequence
from typing import TypeVar

from togi.core.records import Drop, Message, Pair, Prompt
from togi.core.seeds import make_id
from togi.text.compare import same

T = TypeVar("T")


def build_pair(prompt: Prompt, chosen: str, rejected: str, *, stage: str, index: int = 0) -> Pair | Drop:
    """The pair in which `chosen` answers `prompt` better than `rejected`; both are trimmed.

    Returns a Drop, with the prompt's id, if a side is empty (empty_answer) or if both sides differ only in case,
    spacing and punctuation (equal_answers).
    """
    name = make_id(stage, (prompt.id,), index)
    good, bad = chosen.strip(), rejected.strip()
    if not good or not bad:
        return Drop(id=prompt.id, stage=stage, reason="empty_answer")
    if same(good, bad):
        return Drop(id=prompt.id, stage=stage, reason="equal_answers")
    return Pair(
        id=name,
        parents=(prompt.id,),
        source=prompt.source,
        prompt=prompt.messages,
        chosen=(Message("assistant", good),),
        rejected=(Message("assistant", bad),),
    )


def cut_to_shorter(a: Sequence[T], b: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Both sequences (token ids, words, characters) cut to the length of the shorter one."""
    length = min(len(a), len(b))
    return a[:length], b[:length]
