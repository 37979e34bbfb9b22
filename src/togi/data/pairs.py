"""Preference pairs from two answers, and shuffled-label controls for reward models."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from togi.core.records import Drop, Message, Pair, Prompt
from togi.core.seeds import derive, make_id
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


def shuffle_labels(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The control: exactly half of the pairs (the odd one stays) have their sides swapped, drawn from `seed`.

    A model trained on these pairs learns nothing: its accuracy on held-out pairs must be about one half.
    """
    order = np.random.default_rng(derive(seed, "shuffle_labels", len(pairs))).permutation(len(pairs))
    swapped = np.zeros(len(pairs), dtype=bool)
    swapped[order[: len(pairs) // 2]] = True
    return [swap(pair) if flip else pair for pair, flip in zip(pairs, swapped, strict=True)]


def swap(pair: Pair) -> Pair:
    """The pair with its sides swapped, under the same id; a known margin changes its sign."""
    margin = None if pair.margin is None else -pair.margin
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, margin=margin)
