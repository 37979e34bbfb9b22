"""Splits records: the size of each part, and the part of each group of records with equal prompts."""

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b

from togi.core.records import Chat, Document, Message, Pair, Prompt, Record, Sample
from togi.text.compare import comparable


def prompt_key(record: Record) -> bytes:
    """A 16-byte key of a record's prompt: what the user says, ignoring case, spacing and punctuation. The prompt of a
    chat ends before its first answer; a document is its own prompt."""
    match record:
        case Sample():
            said = _said(record.prompt.messages)
        case Prompt():
            said = _said(record.messages)
        case Pair():
            said = _said(record.prompt)
        case Chat():
            answers = [i for i, message in enumerate(record.messages) if message.role == "assistant"]
            said = _said(record.messages[: answers[0]] if answers else record.messages)
        case Document():
            said = [comparable(record.text)]
        case _:
            said = [record.id]
    return blake2b("\0".join(said).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _said(messages: Sequence[Message]) -> list[str]:
    """The user's turns, normalised; all turns if the user says nothing."""
    user = [comparable(message.content) for message in messages if message.role == "user"]
    return user if any(user) else [f"{message.role}: {message.content}" for message in messages]


def part_sizes(parts: Mapping[str, int | float], total: int) -> dict[str, int]:
    """The number of records for each part, out of `total`, in name order: counts as they are, shares by the largest
    remainder method."""
    names = sorted(parts)
    if isinstance(parts[names[0]], int):
        return {name: int(parts[name]) for name in names}
    exact = {name: Fraction(str(parts[name])) * total for name in names}
    sizes = {name: int(exact[name]) for name in names}
    by_remainder = sorted(names, key=lambda name: sizes[name] - exact[name])
    for place in range(max(0, total - sum(sizes.values()))):
        sizes[by_remainder[place % len(names)]] += 1
    return sizes


def deal(groups: Sequence[int], sizes: Mapping[str, int], seed: int) -> list[str | None]:
    """Returns the part of each group, given the group sizes `groups`; None for a group that is left over.

    Large groups are dealt first. Each group is drawn into one of the parts that have room for it, with probabilities
    proportional to the remaining room; for groups of one record this is a uniformly random partition. If no part has
    room and the sizes should hold all records, the part with the most room gets the group.
    """
    room = dict(sizes)
    whole = sum(sizes.values()) >= sum(groups)
    generator = random.Random(seed)
    found: list[str | None] = [None] * len(groups)
    for place in sorted(range(len(groups)), key=lambda i: -groups[i]):
        fitting = {name: left for name, left in room.items() if left >= groups[place]}
        if fitting:
            name = generator.choices(list(fitting), list(fitting.values()))[0]
        elif whole:
            name = max(room, key=lambda each: room[each])
        else:
            continue
        room[name] -= groups[place]
        found[place] = name
    return found
