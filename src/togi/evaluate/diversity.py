"""The diversity of base and policy, for the before/after table: distinct-n, self-BLEU, dispersion of embeddings.

Both models answer each prompt once, and the prompts have the same order. All three measures depend on length, so
compare `Texts.cut()`: a model whose answers never end repeats itself more.

Names: `_P` one value per prompt, `_PQ` one per pair of prompts, `_PD` one vector per prompt, `_N` n-gram order.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar

from togi.core.errors import InputError
from togi.evaluate.bleu import ORDERS, sentence_bleu
from togi.evaluate.distinct import Units, distinct, enough, ngrams, units_of
from togi.evaluate.lengths import cut_characters
from togi.evaluate.statistics import Bootstrap, Floats, Jackknife
from togi.evaluate.table import Metric, Row, compare_jackknife

SELF_BLEU = "self-BLEU"
ALIKE = 20.0
"""Points of self-BLEU: our choice. Runs whose answers took one form rose by 35 to 43, others changed by 8 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The answers of base and policy to the same prompts, terminators already removed."""

    base: Sequence[str]
    policy: Sequence[str]
    one_length: bool = False  # whether both answers of each prompt were cut to the shorter one's length

    def __post_init__(self) -> None:
        if len(self.base) != len(self.policy):
            raise InputError(f"diversity: {len(self.base)} base and {len(self.policy)} policy answers cannot be paired")

    def cut(self, *, share: float = 1.0) -> "Texts":
        """Both answers of each prompt cut to `share` of the shorter one's length, at word boundaries."""
        pairs = [cut_characters(*pair, share=share) for pair in zip(self.base, self.policy, strict=True)]
        return Texts(base=[pair[0] for pair in pairs], policy=[pair[1] for pair in pairs], one_length=True)


def self_bleu(texts_P: Sequence[str], units: Units) -> Jackknife:
    """Mean BLEU of each answer against all others (Zhu et al., arXiv 1802.01886), 0 to 100; low means diverse.

    Sentence BLEU with sacrebleu's defaults (13a tokens, characters in languages without spaces; exponential smoothing,
    effective order). One pass over the n-grams also gives all leave-one-out values: for each n-gram, only the answer
    with the highest count matters, or the one with the second highest if that answer is left out.
    """
    enough(texts_P)
    split = bleu_words(units)
    words_P = [split(text) for text in texts_P]
    length_P = np.array([len(words) for words in words_P])
    matches_NPQ = np.stack([_matches(words_P, n) for n in range(1, ORDERS + 1)])
    possible_NP = np.stack([np.maximum(length_P - n + 1, 0) for n in range(1, ORDERS + 1)])
    bleu_PQ = sentence_bleu(matches_NPQ, possible_NP[:, :, None], length_P[:, None], _closest_lengths(length_P))
    # Column q of row p is p's score without q as a reference; the diagonal is p's score against all others.
    count = len(texts_P)
    full_P = np.diagonal(bleu_PQ)
    without_P = (bleu_PQ.sum(axis=0) - full_P) / (count - 1)
    return Jackknife(value=float(full_P.mean()), without_P=without_P)


def dispersion(vectors_PD: ArrayLike) -> Jackknife:
    """Mean cosine distance between two answers' embeddings, 0 (all equal) to 2; InputError for a vector of length 0."""
    vectors_PD = np.asarray(vectors_PD, dtype=np.float64)
    if vectors_PD.ndim != 2:
        raise InputError(f"dispersion: vectors of shape {vectors_PD.shape}; one row per answer is needed")
    enough(vectors_PD)
    norm_P = np.linalg.norm(vectors_PD, axis=1)
    if not np.all(np.isfinite(norm_P) & (norm_P > 0)):
        raise InputError("dispersion: an embedding is zero or not finite; is there an empty answer?")
    unit_PD = vectors_PD / norm_P[:, None]
    count = len(unit_PD)
    # Row sums of the distances to all others, minus the distance to itself, which is exactly 1 - |unit|^2.
    away_P = (count - unit_PD @ unit_PD.sum(axis=0)) - (1 - (unit_PD**2).sum(axis=1))
    total = away_P.sum()
    without_P = (total - 2 * away_P) / ((count - 1) * (count - 2))
    return Jackknife(value=float(total / (count * (count - 1))), without_P=without_P)


def diversity_rows(
    texts: Texts,
    language: str,
    bootstrap: Bootstrap,
    vectors: tuple[ArrayLike, ArrayLike] | None = None,
    cap: int = 512,
) -> list[Row]:
    """Rows of distinct-1, -2, -3, self-BLEU and, with `vectors` (base, policy), embedding dispersion.

    With more than `cap` prompts, self-BLEU uses the same sample of `cap` prompts for both models, drawn with the
    bootstrap's seed.
    """
    units = units_of(language)
    cut = ", answers cut to the same length" if texts.one_length else ""
    rows = []
    for n in (1, 2, 3):
        note = f"different {n}-grams of {units}{cut}"
        metric = Metric(name=f"distinct-{n}", higher_is_better=True, note=note, most=1.0)
        base, policy = distinct(texts.base, n, units), distinct(texts.policy, n, units)
        rows.append(compare_jackknife(metric, base, policy, bootstrap))
    chosen = drawn(len(texts.base), cap, bootstrap.seed)
    note = f"each of {len(chosen)} answers against the others{cut}"
    metric = Metric(name=SELF_BLEU, higher_is_better=False, note=note, most=100.0)
    base, policy = (self_bleu([side[i] for i in chosen], units) for side in (texts.base, texts.policy))
    rows.append(compare_jackknife(metric, base, policy, bootstrap))
    if vectors is not None:
        rows.append(_dispersion_row(*vectors, bootstrap))
    return rows


def grown_alike(rows: Sequence[Row]) -> Row | None:
    """The row of self-BLEU, if the policy's answers resemble each other far more than the base's: the whole interval of
    the difference is above ALIKE."""
    for row in rows:
        if row.metric == SELF_BLEU and row.difference is not None and row.difference.low > ALIKE:
            return row
    return None


def _dispersion_row(base: ArrayLike, policy: ArrayLike, bootstrap: Bootstrap) -> Row:
    """The row of embedding dispersion. Leaves out prompts with an empty answer, which has no embedding, for both
    models; the note counts them."""
    base_PD, policy_PD = np.asarray(base, dtype=np.float64), np.asarray(policy, dtype=np.float64)
    if len(base_PD) != len(policy_PD):
        raise InputError(f"diversity: {len(base_PD)} base and {len(policy_PD)} policy vectors cannot be paired")
    full_P = base_PD.any(axis=1) & policy_PD.any(axis=1)
    left_out = int((~full_P).sum())
    note = "mean cosine distance" + (f", {left_out} prompts with an empty answer left out" if left_out else "")
    metric = Metric(name="embedding dispersion", higher_is_better=True, note=note, most=2.0)
    return compare_jackknife(metric, dispersion(base_PD[full_P]), dispersion(policy_PD[full_P]), bootstrap)


def drawn(count: int, cap: int, seed: int) -> list[int]:
    """The sorted indices of at most `cap` of `count` answers, drawn by `seed`."""
    if count <= cap:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:cap].tolist())


def bleu_words(units: Units) -> Callable[[str], list[str]]:
    """The function that splits a text for BLEU as sacrebleu does: into 13a tokens, or characters."""
    tokenize = TokenizerChar() if units == "characters" else Tokenizer13a()
    return lambda text: tokenize(text.rstrip()).split()


def _matches(words_P: Sequence[Sequence[str]], n: int) -> Floats:
    """[p, q]: n-grams of answer p found in the others except q, clipped as in BLEU; [p, p]: in all others."""
    grams_P = [Counter(ngrams(words, n)) for words in words_P]
    holders: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for q, grams in enumerate(grams_P):
        for gram, count in grams.items():
            holders.setdefault(gram, []).append((count, q))
    top = {gram: sorted(found, reverse=True)[:3] for gram, found in holders.items()}
    found_PQ = np.zeros((len(words_P), len(words_P)))
    for p, grams in enumerate(grams_P):
        for gram, count in grams.items():
            others = [holder for holder in top[gram] if holder[1] != p]
            if others:
                best = min(count, others[0][0])
                second = min(count, others[1][0]) if len(others) > 1 else 0
                found_PQ[p] += best
                found_PQ[p, others[0][1]] += second - best
    return found_PQ


def _closest_lengths(length_P: np.ndarray) -> np.ndarray:
    """[p, q]: the length closest to p's among the others except q; the shorter of two equally close ones."""
    count = len(length_P)
    closest_PQ = np.empty((count, count), dtype=np.int64)
    for p in range(count):
        others = np.delete(np.arange(count), p)
        order = others[np.lexsort((length_P[others], np.abs(length_P[others] - length_P[p])))]
        closest_PQ[p] = length_P[order[0]]
        closest_PQ[p, order[0]] = length_P[order[1]]
    return closest_PQ
