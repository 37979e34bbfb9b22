"""Small batches of sequences whose trees have every shape."""

import random

from tiny import VOCABULARY

from togi.model.forest import (
    Sequence,
)


def sequence(ids: list[int], *spans: tuple[int, int]) -> Sequence:
    return Sequence(tuple(ids), tuple(any(a <= i < b for a, b in spans) for i in range(len(ids))))


def group(rng: random.Random, trunk: int, branches: list[int]) -> list[Sequence]:
    """Sequences of one prompt whose answers begin with different ids."""
    prompt = [rng.randrange(3, VOCABULARY) for _ in range(trunk)]
    firsts = rng.sample(range(3, VOCABULARY), len(branches))
    answers = [
        [first, *(rng.randrange(3, VOCABULARY) for _ in range(n - 1))]
        for first, n in zip(firsts, branches, strict=True)
    ]
    return [sequence(prompt + answer, (trunk, trunk + len(answer))) for answer in answers]


def chat(rng: random.Random, length: int, *spans: tuple[int, int]) -> list[Sequence]:
    return [sequence([rng.randrange(3, VOCABULARY) for _ in range(length)], *spans)]


def batches() -> dict[str, list[list[Sequence]]]:
    rng = random.Random(5)
    pair = group(rng, 9, [4, 7])
    return {
        "group": [group(rng, 7, [3, 5, 1, 8])],
        "pairs": [pair, group(rng, 3, [6, 6])],
        "chats": [chat(rng, 17, (4, 7), (11, 17)), chat(rng, 5, (1, 5))],
        "trunk of one": [group(rng, 1, [4, 3])],
        "branch of one": [group(rng, 8, [1, 1])],
        "many": [group(rng, 12, [9, 2]), chat(rng, 6, (3, 4)), group(rng, 2, [1, 5, 3]), chat(rng, 13, (2, 9))],
        "shared answers": [[pair[0], pair[0], sequence([*pair[0].ids[:11], 5], (9, 12))]],
        "nothing shared": [[sequence([5, 6, 7], (1, 3)), sequence([8, 9], (1, 2))]],
    }


def flat(groups: list[list[Sequence]]) -> list[Sequence]:
    return [s for one in groups for s in one]
