"""Similarity of answers by their embeddings: within a prompt, across prompts, over wordings, and between two models.

Suffixes: P prompts, K answers to each, D embedding width. Rows of embeddings have length 1. A row of zeros is an answer
without an embedding, such as an empty one, and is left out. If nothing is left, a value is NaN.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from togi.core.errors import InputError
from togi.evaluate.statistics import Floats, Jackknife
from togi.text.compare import normalise

SMALLEST = 1e-12  # a smaller eigenvalue is 0 up to rounding


def unit_vectors(rows: ArrayLike, answers: int) -> Floats:
    """Embeddings (P * K, D) as (P, K, D), with rows of length 1. Raises InputError for another shape or numbers that
    are not finite."""
    rows_ND = np.asarray(rows, dtype=np.float64)
    if rows_ND.ndim != 2 or len(rows_ND) % answers or not np.isfinite(rows_ND).all():
        raise InputError(f"diversity: embeddings of shape {rows_ND.shape}; needs finite rows, {answers} per prompt")
    norm_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return (rows_ND / np.where(norm_N1 > 0, norm_N1, 1.0)).reshape(-1, answers, rows_ND.shape[1])


def spread_within(vectors_PKD: Floats) -> Floats:
    """Mean cosine distance between two answers to one prompt (P,); NaN if fewer than two have an embedding."""
    sum_PD, count_P = _sums(vectors_PKD)
    away_P = count_P**2 - (sum_PD**2).sum(axis=1)  # the distance of an answer to itself is 0
    return _divided(away_P, count_P * (count_P - 1))


def likeness(ours_PKD: Floats, theirs_PKD: Floats) -> Floats:
    """Mean cosine similarity between the answers of two models to the same prompt (P,)."""
    ours_PD, ours_P = _sums(ours_PKD)
    theirs_PD, theirs_P = _sums(theirs_PKD)
    return _divided((ours_PD * theirs_PD).sum(axis=1), ours_P * theirs_P)


def homogenisation(vectors_PKD: Floats) -> Jackknife | None:
    """Mean cosine similarity between answers to different prompts, also with each prompt left out. It is high if a
    model answers everything alike. None for fewer than two prompts; every prompt needs an embedding.

    After the homogenisation score of Padmakumar and He (arXiv 2309.05196), with cosines instead of ROUGE-L.
    """
    sum_PD, count_P = _sums(vectors_PKD)
    if len(count_P) < 2:
        return None
    own_P, all_D, all_count = (sum_PD**2).sum(axis=1), sum_PD.sum(axis=0), count_P.sum()
    alike, pairs = float(all_D @ all_D - own_P.sum()), float(all_count**2 - (count_P**2).sum())
    alike_P, pairs_P = 2 * (sum_PD @ all_D - own_P), 2 * count_P * (all_count - count_P)
    value = alike / pairs
    without_P = _divided(alike - alike_P, pairs - pairs_P) if len(count_P) > 2 else np.full(2, value)
    return Jackknife(value=value, without_P=without_P)


def vendi_within(vectors_PKD: Floats) -> Floats:
    """The Vendi score of the answers to each prompt (P,): their effective number of different answers, from 1 to K
    (Friedman and Dieng, arXiv 2210.02410; cosine kernel, order 1); NaN if fewer than two have an embedding."""
    count_P = _sums(vectors_PKD)[1]
    gram_PKK = vectors_PKD @ vectors_PKD.transpose(0, 2, 1) / np.maximum(count_P, 1)[:, None, None]
    score_P = np.clip(np.exp(_entropy(np.linalg.eigvalsh(gram_PKK))), 1.0, np.maximum(count_P, 1))
    return np.where(count_P > 1, score_P, np.nan)


def vendi(vectors_ND: Floats) -> tuple[float, Floats]:
    """The Vendi score of N answers, and the influence of each answer on it (N,), which sums to 0.

    The score is the exponential of the entropy of the kernel's eigenvalues. The N x N kernel and the D x D Gram matrix
    have the same eigenvalues above 0, so the smaller matrix is decomposed. The influence is the derivative of the score
    (the infinitesimal jackknife, Efron 1982): leaving out each answer would need N decompositions.
    """
    count, width = vectors_ND.shape
    if width <= count:
        value_J, vector_DJ = np.linalg.eigh(vectors_ND.T @ vectors_ND / count)
        part_NJ = (vectors_ND @ vector_DJ) ** 2
    else:
        value_J, vector_NJ = np.linalg.eigh(vectors_ND @ vectors_ND.T / count)
        part_NJ = count * vector_NJ**2 * np.maximum(value_J, 0)
    entropy = float(_entropy(value_J))
    logs_J = np.log(np.where(value_J > SMALLEST, value_J, 1.0))
    score = min(max(float(np.exp(entropy)), 1.0), float(count))  # rounding may leave the range
    return score, -score * (part_NJ @ logs_J + entropy)


def answer_entropy(texts: Sequence[str], answers: int) -> Floats:
    """The entropy in bits of the different answers to each prompt (P,), from 0 (all equal) to log2 K (all different);
    NaN with a single answer per prompt.

    Answers are equal if only case, punctuation and spacing differ. This is the entropy of the sampled answers, a lower
    bound of the model's.
    """
    groups = [[normalise(text) for text in texts[at : at + answers]] for at in range(0, len(texts), answers)]
    if answers < 2:
        return np.full(len(groups), np.nan)
    shares = [np.array(list(Counter(group).values())) / answers for group in groups]
    return np.array([abs(float(share @ np.log2(share))) for share in shares])


def spread_over(vectors_PKD: Floats, questions: Sequence[Hashable]) -> Floats:
    """Mean cosine distance between answers to two wordings of one question, stored at the question's first wording
    (P,); NaN at the others, and for a question with a single wording. `questions` names the question of each prompt."""
    places: dict[Hashable, int] = {}
    question_P = np.array([places.setdefault(name, place) for place, name in enumerate(questions)], dtype=np.intp)
    if len(question_P) != len(vectors_PKD):
        raise InputError(f"diversity: {len(vectors_PKD)} prompts but {len(question_P)} names of questions")
    sum_PD, count_P = _sums(vectors_PKD)
    all_PD = np.zeros_like(sum_PD)
    np.add.at(all_PD, question_P, sum_PD)
    size = len(question_P)
    own_P, together_P, squares_P = (
        np.bincount(question_P, weights=values_P, minlength=size).astype(np.float64)
        for values_P in ((sum_PD**2).sum(axis=1), count_P, count_P**2)
    )
    return 1 - _divided((all_PD**2).sum(axis=1) - own_P, together_P**2 - squares_P)


def _sums(vectors_PKD: Floats) -> tuple[Floats, Floats]:
    """The sum of each prompt's embeddings, and how many it has."""
    return vectors_PKD.sum(axis=1), vectors_PKD.any(axis=2).sum(axis=1).astype(np.float64)


def _divided(above: Floats | float, below: Floats) -> Floats:
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)


def _entropy(values: np.ndarray) -> Floats:
    """- sum v log v over the last axis, in nats."""
    values = np.where(values > SMALLEST, values, 1.0)
    return -(values * np.log(values)).sum(axis=-1)
