"""The workload of both sides of a benchmark: the same token ids, texts and lengths.

Standard library only, because it is imported in environments that share nothing but Python.
"""

import random
from typing import Any

FIRST_ID = 3  # ids below are special tokens of every model used here
COMMON_WORDS = (
    "the of and to in that it was he for is with his as on be at by had not are but from or have an they which one "
    "were all her she there would their we him been has when who will no more if out so said what up its about into"
)


def random_ids(rng: random.Random, count: int, vocabulary: int) -> list[int]:
    """`count` token ids that are not special."""
    return [rng.randrange(FIRST_ID, vocabulary) for _ in range(count)]


def groups(config: dict) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt ids, answers' ids) for each group: `groups` prompts of `prompt` tokens, `samples` answers of `answer`."""
    rng = random.Random(config["seed"])
    vocabulary = config["vocabulary"]
    return [
        (
            random_ids(rng, config["prompt"], vocabulary),
            [random_ids(rng, config["answer"], vocabulary) for _ in range(config["samples"])],
        )
        for _ in range(config["groups"])
    ]


def advantages(config: dict) -> list[float]:
    """One advantage per sample, group after group, with mean 0 and deviation 1 in each group."""
    rng = random.Random(config["seed"] + 1)
    values: list[float] = []
    for _ in range(config["groups"]):
        raw = [rng.gauss(0.0, 1.0) for _ in range(config["samples"])]
        mean = sum(raw) / len(raw)
        deviation = (sum((r - mean) ** 2 for r in raw) / (len(raw) - 1)) ** 0.5
        values += [(r - mean) / deviation for r in raw]
    return values


def spread_lengths(config: dict, count: int) -> list[int]:
    """`count` lengths spread evenly from `shortest` to `longest`, in a shuffled order."""
    low, high = config["shortest"], config["longest"]
    lengths = [low + (high - low) * i // max(1, count - 1) for i in range(count)]
    random.Random(config["seed"] + 2).shuffle(lengths)
    return lengths


def answer_lengths(config: dict) -> list[int]:
    """The number of tokens of each sample."""
    return spread_lengths(config, config["groups"] * config["samples"])


def texts(config: dict) -> list[tuple[list[int], int]]:
    """(token ids, index of the first that carries loss) of `texts` texts. `unscored` is the share of a text that is
    only context, its question; with 0, all tokens carry loss except the first, which has no context."""
    rng = random.Random(config["seed"])
    made = []
    for length in spread_lengths(config, config["texts"]):
        ids = random_ids(rng, length, config["vocabulary"])
        made.append((ids, max(1, int(length * config["unscored"]))))
    return made


def pairs(config: dict) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen answer, rejected answer) for each of `pairs` pairs, as token ids."""
    rng, vocabulary = random.Random(config["seed"]), config["vocabulary"]
    sizes = (config["prompt"], config["answer"], config["answer"])
    made = [tuple(random_ids(rng, size, vocabulary) for size in sizes) for _ in range(config["pairs"])]
    return made  # type: ignore[return-value]


def head_weights(seed: int, width: int) -> list[float]:
    """The new head of a reward model."""
    rng = random.Random(seed)
    return [rng.gauss(0.0, 1.0) / (width + 1) ** 0.5 for _ in range(width)]


def prompt_texts(config: dict, count: int) -> list[str]:
    """`count` different prompts of `words` common words each."""
    rng = random.Random(config["seed"])
    words = COMMON_WORDS.split()
    return [" ".join(rng.choice(words) for _ in range(config["words"])) for _ in range(count)]


def reward(text: str) -> float:
    """A reward that costs nothing and differs between samples: the number of different characters."""
    return float(len(set(text)))


def reward_of(prompt: object, completion: Any) -> float:
    """`reward` with the signature of togi's reward functions."""
    return reward(completion.text)
