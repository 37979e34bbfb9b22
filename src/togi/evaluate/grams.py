"""n-grams of many answers at once, as integer arrays: distinct-n and self-BLEU, within and across prompts.

Suffixes: P prompts, N answers grouped by prompt, T units (words or characters) of all answers, G n-grams of all
answers, U distinct n-grams of each answer or prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from togi.core.errors import InputError
from togi.evaluate.bleu import ORDERS, sentence_bleu
from togi.evaluate.statistics import Floats, Jackknife

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coded:
    """Answers as integers, one per unit: answer i is `units_T[starts[i] : starts[i + 1]]` and belongs to prompt
    `prompt_N[i]` of `prompts`."""

    units_T: Ints
    starts: Ints
    prompt_N: Ints
    prompts: int

    @classmethod
    def of(cls, split: Sequence[Sequence[str]], prompt_N: Sequence[int], prompts: int) -> "Coded":
        """Encodes answers that are split into units. Raises InputError if they are not grouped by prompt."""
        owner_N = np.asarray(prompt_N, dtype=np.int64)
        if len(split) != len(owner_N) or (np.diff(owner_N) < 0).any() or owner_N.max(initial=-1) >= prompts:
            raise InputError(f"diversity: {len(split)} answers are not grouped by the {prompts} prompts")
        known: dict[str, int] = {}
        units_T = np.array([known.setdefault(unit, len(known)) for units in split for unit in units], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum([len(units) for units in split])]).astype(np.int64)
        return cls(units_T, starts, owner_N, prompts)

    @property
    def lengths(self) -> Ints:
        """The number of units of each answer."""
        return np.diff(self.starts)

    def ngrams(self, n: int) -> tuple[Ints, Ints]:
        """(n-gram, answer) of every run of `n` units of an answer, in order; equal n-grams have equal numbers."""
        owner_T = np.repeat(np.arange(len(self.starts) - 1), self.lengths)
        gram_T, size = self.units_T, int(self.units_T.max(initial=0)) + 1
        for more in range(1, n):
            longer_T = gram_T[:-1] * size + self.units_T[more:]
            gram_T = np.unique(longer_T, return_inverse=True)[1].astype(np.int64)
        count = max(len(self.units_T) - n + 1, 0)
        inside = owner_T[:count] == owner_T[len(owner_T) - count :]
        return gram_T[:count][inside], owner_T[:count][inside]


def distinct_within(coded: Coded, n: int) -> Floats:
    """distinct-n of the answers to each prompt (P,): distinct n-grams divided by all (Li et al., arXiv 1510.03055); NaN
    for fewer than two answers, or without n-grams."""
    gram_G, owner_G = coded.ngrams(n)
    prompt_G = coded.prompt_N[owner_G]
    different = np.bincount(_different(prompt_G, gram_G)[0], minlength=coded.prompts)
    total = np.bincount(prompt_G, minlength=coded.prompts)
    several = (total > 0) & (np.bincount(coded.prompt_N, minlength=coded.prompts) > 1)
    return np.where(several, different / np.maximum(total, 1), np.nan)


def distinct_across(coded: Coded, n: int) -> Jackknife | None:
    """distinct-n of all answers together, also with each prompt left out; None without n-grams."""
    gram_G, owner_G = coded.ngrams(n)
    if not len(gram_G):
        return None
    prompt_G = coded.prompt_N[owner_G]
    prompt_U, gram_U = _different(prompt_G, gram_G)
    holders = np.bincount(gram_U)
    own_P = np.bincount(prompt_U, weights=holders[gram_U] == 1, minlength=coded.prompts)
    different, total = int((holders > 0).sum()), len(gram_G)
    left_P = np.maximum(total - np.bincount(prompt_G, minlength=coded.prompts), 1)
    return Jackknife(value=different / total, without_P=(different - own_P) / left_P)


def self_bleu_within(coded: Coded) -> Floats:
    """The mean BLEU of each answer against the other answers to the same prompt (P,), 0 to 100; low means diverse. NaN
    for fewer than two answers. Sentence BLEU as in `diversity.self_bleu`."""
    matches = np.stack([_matches(coded, n) for n in range(1, ORDERS + 1)])
    possible = np.stack([np.maximum(coded.lengths - n + 1, 0) for n in range(1, ORDERS + 1)])
    bleu_N = sentence_bleu(matches, possible, coded.lengths, _closest(coded))
    count_P = np.bincount(coded.prompt_N, minlength=coded.prompts)
    sum_P = np.bincount(coded.prompt_N, weights=bleu_N, minlength=coded.prompts)
    return np.where(count_P > 1, sum_P / np.maximum(count_P, 1), np.nan)


def _different(owner_G: Ints, gram_G: Ints) -> tuple[Ints, Ints]:
    """Each different (owner, n-gram) once."""
    size = int(gram_G.max(initial=0)) + 1
    keys_G = np.sort(owner_G * size + gram_G)
    found = keys_G[np.diff(keys_G, prepend=-1) > 0]
    return found // size, found % size


def _matches(coded: Coded, n: int) -> Floats:
    """For each answer, the number of its n-grams that other answers to its prompt contain, clipped as in BLEU to the
    highest count in any of them."""
    gram_G, owner_G = coded.ngrams(n)
    size = int(gram_G.max(initial=0)) + 1
    keys, count_U = np.unique(owner_G * size + gram_G, return_counts=True)
    owner_U, gram_U = keys // size, keys % size
    order = np.lexsort((-count_U, gram_U, coded.prompt_N[owner_U]))
    owner_U, gram_U, count_U = owner_U[order], gram_U[order], count_U[order]
    prompt_U = coded.prompt_N[owner_U]
    first_U = np.ones(len(order), dtype=bool)
    first_U[1:] = (prompt_U[1:] != prompt_U[:-1]) | (gram_U[1:] != gram_U[:-1])
    best_U = count_U[first_U][np.cumsum(first_U) - 1] if len(order) else count_U
    second_U = np.zeros_like(count_U)  # the second highest count of the n-gram
    second_U[:-1] = np.where(first_U[1:], 0, count_U[1:])
    others_U = np.where(first_U, second_U, best_U)
    shared_U = np.minimum(count_U, others_U)
    return np.bincount(owner_U, weights=shared_U, minlength=len(coded.prompt_N)).astype(np.float64)


def _closest(coded: Coded) -> Ints:
    """For each answer, the length closest to its own among the other answers to its prompt; the shorter of two equally
    close ones; its own length without other answers."""
    closest_N = coded.lengths.copy()
    edges = np.searchsorted(coded.prompt_N, np.arange(coded.prompts + 1))
    for start, stop in pairwise(edges):
        if stop - start > 1:
            length_K = coded.lengths[start:stop]
            away_KK = np.abs(length_K[:, None] - length_K) * 2 + (length_K > length_K[:, None])
            np.fill_diagonal(away_KK, np.iinfo(np.int64).max)
            closest_N[start:stop] = length_K[away_KK.argmin(axis=1)]
    return closest_N
