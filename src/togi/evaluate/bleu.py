"""Sentence BLEU from counts of n-grams, for any shape of candidates at once."""

import numpy as np

from togi.evaluate.statistics import Floats

ORDERS = 4  # n-gram orders of BLEU


def sentence_bleu(matches: Floats, possible: np.ndarray, lengths: np.ndarray, closest: np.ndarray) -> Floats:
    """BLEU, 0 to 100, with sacrebleu's exponential smoothing and effective order.

    `matches` are the clipped matches, one row per order; `possible` the numbers of n-grams of the candidates, `lengths`
    their lengths, `closest` the lengths of the references closest in length. All but `closest` may be broadcast.
    """
    smooth = np.ones(closest.shape)
    logs = np.zeros(closest.shape)
    order = (possible > 0).sum(axis=0)
    for found, most in zip(matches, possible, strict=True):
        counted = np.broadcast_to(most > 0, closest.shape)
        missed = counted & (found == 0)
        smooth = np.where(missed, 2 * smooth, smooth)
        share = np.where(missed, 1 / smooth, found) / np.maximum(most, 1)
        logs += np.log(np.where(counted, share, 1.0))
    penalty = np.where(lengths < closest, np.exp(1 - closest / np.maximum(lengths, 1)), 1.0)
    score = 100 * penalty * np.exp(logs / np.maximum(order, 1))
    return np.where(matches.sum(axis=0) == 0, 0.0, score)
