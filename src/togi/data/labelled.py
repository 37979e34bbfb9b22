"""Labelled data sets, as for KTO: rows of a prompt, an answer and whether it is good. Two rows with one prompt make a
pair."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from togi.data.shapes import Shape


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row whose `shape` has a label, with its position in the file and its other columns. `prompt` is a hash of its
    prompt."""

    where: str
    prompt: Hashable
    shape: Shape
    extra: dict[str, Any]


def pairs_of(rows: Sequence[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """(pairs, rows without a partner), prompt by prompt, in the order in which the prompts first occur.

    Within a prompt, the first good answer is paired with the first bad one, and so on. If one kind has fewer answers,
    they are reused from the first, so that every answer is in a pair. A pair keeps the columns of its good answer.
    """
    groups: dict[Hashable, tuple[list[Labelled], list[Labelled]]] = {}
    for row in rows:
        good, bad = groups.setdefault(row.prompt, ([], []))
        (good if row.shape.label else bad).append(row)
    pairs: list[Labelled] = []
    alone: list[Labelled] = []
    for good, bad in groups.values():
        if not good or not bad:
            alone += good + bad
            continue
        for place in range(max(len(good), len(bad))):
            one, other = good[place % len(good)], bad[place % len(bad)]
            shape = replace(one.shape, chosen=one.shape.answer, rejected=other.shape.answer, answer=None, label=None)
            pairs.append(replace(one, shape=shape))
    return pairs, alone
