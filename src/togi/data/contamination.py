"""Finds texts of evaluation sets in other texts, by shared n-grams.

N-grams consist of words in languages with spaces between words, of characters in others. The writing system of an
evaluation text decides which; it is searched for in texts of every language.

Suffixes: G n-grams of texts, H n-grams of the evaluation sets, P pairs of both, M matches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from togi.text.compare import normalise
from togi.text.ngrams import Codes, Ngrams, character_ngrams, word_ngrams
from togi.text.script import is_spaced


@dataclass(frozen=True, slots=True)
class Sought:
    """A text of an evaluation set: the set it belongs to, and its record's id."""

    where: str
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """Text `row` contains `share` of the n-grams of `sought`; `text` is a passage that both share, normalised."""

    row: int
    sought: Sought
    share: float
    text: str


class Contamination:
    """Finds evaluation texts in other texts.

    A text matches if it contains at least `share` of the distinct n-grams of an evaluation text. An evaluation text
    shorter than one n-gram matches only an equal text. An n-gram has `words` words or `characters` characters.
    """

    def __init__(self, sought: Sequence[Sought], words: int, characters: int, share: float) -> None:
        self.sought = list(sought)
        self.share = share
        plain = [normalise(each.text) for each in sought]
        spaced = [is_spaced(text) for text in plain]
        long = [
            len(text.split()) >= words if spaces else len(text) >= characters
            for text, spaces in zip(plain, spaced, strict=True)
        ]
        self._equal: dict[str, int] = {}
        for item, text in enumerate(plain):
            if text and not long[item]:
                self._equal.setdefault(text, item)
        self._indexes = [
            _Index(
                [item for item, spaces in enumerate(spaced) if long[item] and spaces == as_words],
                plain,
                cut,
            )
            for as_words, cut in (
                (True, lambda codes: word_ngrams(codes, words)),
                (False, lambda codes: character_ngrams(codes, characters)),
            )
        ]

    def find(self, texts: Sequence[str]) -> list[Found]:
        """All matches, ordered by text, then by the order of the evaluation texts."""
        plain = [normalise(text) for text in texts]
        found = [
            Found(row, self.sought[self._equal[text]], 1.0, text)
            for row, text in enumerate(plain)
            if text in self._equal
        ]
        for index in self._indexes:
            found += [
                Found(row, self.sought[item], share, text) for row, item, share, text in index.find(plain, self.share)
            ]
        order = {id(each): place for place, each in enumerate(self.sought)}
        return sorted(found, key=lambda match: (match.row, order[id(match.sought)]))


class _Index:
    """The distinct n-grams of some texts, sorted by hash, with the text that each belongs to."""

    def __init__(self, items: Sequence[int], plain: Sequence[str], cut: Callable[[Codes], Ngrams]) -> None:
        self.cut = cut
        self.items = items
        ngrams = cut(Codes.of([plain[item] for item in items]))
        owner_G = np.repeat(np.arange(len(items)), np.diff(ngrams.starts))
        pair_H = np.unique(_pairs(ngrams.hashes_G, owner_G))
        self.hash_H, self.item_H = pair_H["one"], pair_H["other"]
        self.sizes = np.bincount(self.item_H, minlength=len(items))

    def find(self, plain: Sequence[str], least: float) -> list[tuple[int, int, float, str]]:
        """(row, item, share, common text) of each match."""
        if not self.items or not plain:
            return []
        codes = Codes.of(plain)
        ngrams = self.cut(codes)
        low_G = np.searchsorted(self.hash_H, ngrams.hashes_G, "left")
        counts_G = np.searchsorted(self.hash_H, ngrams.hashes_G, "right") - low_G
        hit = np.flatnonzero(counts_G)
        if not len(hit):
            return []
        counts = counts_G[hit]
        gram_P = np.repeat(hit, counts)
        place_P = np.repeat(low_G[hit] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        row_P = np.searchsorted(ngrams.starts, gram_P, "right") - 1
        group_P = row_P * len(self.items) + self.item_H[place_P]
        distinct = np.unique(_pairs(self.hash_H[place_P], group_P))["other"]
        group_M, shared_M = np.unique(distinct, return_counts=True)
        share_M = shared_M / self.sizes[group_M % len(self.items)]
        found = []
        for group, share in zip(group_M[share_M >= least].tolist(), share_M[share_M >= least].tolist(), strict=True):
            row, item = map(int, divmod(group, len(self.items)))
            found.append((row, self.items[item], share, _common(codes, ngrams, gram_P[group_P == group], plain[row])))
        return found


def _pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Combines two columns of numbers into one sortable array."""
    pairs = np.empty(len(one), dtype=[("one", np.uint64), ("other", np.int64)])
    pairs["one"], pairs["other"] = one, other
    return pairs


def _common(codes: Codes, ngrams: Ngrams, grams: np.ndarray, plain: str) -> str:
    """The longest passage of a text whose n-grams all matched."""
    ends = np.append(np.flatnonzero(np.diff(grams) > 1), len(grams) - 1)
    begins = np.append(0, ends[:-1] + 1)
    longest = int(np.argmax(ends - begins))
    first, last = grams[begins[longest]], grams[ends[longest]]
    start = codes.starts[np.searchsorted(codes.starts, ngrams.first_G[first], "right") - 1]
    return plain[ngrams.first_G[first] - start : ngrams.last_G[last] - start]
