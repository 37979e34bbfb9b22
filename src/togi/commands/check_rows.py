"""The rows that `togi check` shows: a few of them token by token, and the lengths of all."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Message, Record
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel
from togi.stages.rehearsal_work import Rehearsed, context_limit
from togi.text.render import render_chat, render_prompt, render_text

AROUND = 24
"""Tokens shown at both ends of a row, and on both sides of each position where the loss begins or ends."""

HOLE = "\ufffd"
"""What a tokenizer gives for a part of a character."""
WIDEST = 8
"""The most tokens that are decoded together for one character."""

BINS = 8
DEMO = (Message("user", "What is the capital of France?"), Message("assistant", "Paris."))


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a row: its text, its id, and whether it carries loss. Of tokens that only together make a character,
    the first has their text, and the others have none."""

    text: str
    id: int
    scored: bool


Tokens = tuple[Token | int, ...]
"""A sequence of tokens; a number stands for that many omitted tokens."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row to show; `which` is the reason for choosing it."""

    which: str
    id: str
    sides: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of a stage's rows, including answers that are not written yet. `limit` is the largest count that a
    row may have, None if the model does not specify one; `bins` are (largest count, rows)."""

    median: float
    longest: int
    limit: int | None
    bins: tuple[tuple[int, int], ...]


def some(records: Sequence[Record], most: int) -> list[Record]:
    """All records, or `most` of them, evenly spaced, and the longest."""
    if len(records) <= most:
        return list(records)
    places = dict.fromkeys(i * len(records) // most for i in range(most))
    places[max(range(len(records)), key=lambda i: len(str(records[i])))] = None
    return [records[i] for i in sorted(places)]


def lengths_of(rows: Sequence[Rehearsed], max_length: int | None) -> Lengths:
    """The lengths of rows; `max_length` is the stage's own limit, otherwise the model's context applies."""
    lengths = [row.length for row in rows]
    first = min(lengths) - 1
    width = -(-(max(lengths) - first) // BINS)
    edges = range(first + width, max(lengths) + width, width)
    bins = tuple((edge, sum(edge - width < length <= edge for length in lengths)) for edge in edges)
    limit = max_length or context_limit(rows[0].model)
    return Lengths(median(lengths), max(lengths), limit, bins)


def shown_of(rows: Sequence[Rehearsed], seed: int) -> list[Shown]:
    """The first, the longest and a random row, without repetitions."""
    if not rows:
        return []
    longest = max(range(len(rows)), key=lambda i: rows[i].length)
    reasons: dict[int, list[str]] = {}
    for place, why in ((0, "first"), (longest, "longest"), (random.Random(seed).randrange(len(rows)), "random")):
        reasons.setdefault(place, []).append(why)
    return [Shown(" and ".join(why), rows[place].id, _sides(rows[place])) for place, why in reasons.items()]


def demo_of(model: LoadedModel, kind: str) -> Tokens:
    """An example conversation as the trainer or a scorer reads it; only the question if the template cannot write an
    answer without a thought."""
    tokenizer, template = model.tokenizer, model.template
    if kind == "scorer":
        ids = tuple(render_text(template, tokenizer, DEMO))
        return _tokens(TokenSequence(ids, (False,) * len(ids)), tokenizer)
    try:
        rendered = render_chat(template, tokenizer, DEMO)
    except InputError:
        ids = tuple(render_prompt(template, tokenizer, DEMO[:1]))
        return _tokens(TokenSequence(ids, (False,) * len(ids)), tokenizer)
    return _tokens(TokenSequence(rendered.ids, rendered.mask), tokenizer)


def _sides(row: Rehearsed) -> tuple[Tokens, ...]:
    return tuple(_tokens(side, row.model.tokenizer) for side in row.sides)


def _tokens(side: TokenSequence, tokenizer: Any) -> Tokens:
    """The tokens at both ends and around each begin or end of the loss; numbers for the omitted ones between them."""
    size = len(side.ids)
    changes = [i for i in range(1, size) if side.scored[i] != side.scored[i - 1]]
    kept = [i for i in range(size) if any(abs(i - place) < AROUND for place in (0, *changes, size))]
    runs: list[range] = []
    for i in kept:
        if runs and i - runs[-1].stop < AROUND:  # too few to omit
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    found: list[Token | int] = []
    for before, run in zip([range(0), *runs], runs, strict=False):
        found += [run.start - before.stop] if run.start > before.stop else []
        found += _decoded(side, run, tokenizer)
    return tuple(found)


def _decoded(side: TokenSequence, run: range, tokenizer: Any) -> list[Token]:
    """The tokens at the places `run`."""
    found: list[Token] = []
    for i in run:
        if i < run.start + len(found):  # a part of the last character
            continue
        text, width = _character(side, range(i, min(i + WIDEST, run.stop)), tokenizer)
        found += [Token("" if j > i else text, side.ids[j], side.scored[j]) for j in range(i, i + width)]
    return found


def _character(side: TokenSequence, places: range, tokenizer: Any) -> tuple[str, int]:
    """The text of the first token and 1, or, if several tokens make up a whole character, their text and their
    number."""
    alone = tokenizer.decode([side.ids[places.start]], skip_special_tokens=False)
    text = alone
    for end in range(places.start + 1, places.stop + 1):
        if HOLE not in text:
            return text, end - places.start
        if end == places.stop or side.scored[end] != side.scored[places.start]:
            break
        text = tokenizer.decode(list(side.ids[places.start : end + 1]), skip_special_tokens=False)
    return alone, 1
