"""The accuracy of a scorer on preference pairs, and a control with shuffled labels."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from togi.core.errors import InputError
from togi.evaluate.statistics import Bootstrap, Interval, by_cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The share of `pairs` whose chosen answer scored strictly higher. A tie is not correct, and is counted in
    `ties`."""

    interval: Interval
    pairs: int
    ties: int


def pair_accuracy(
    chosen_P: ArrayLike, rejected_P: ArrayLike, bootstrap: Bootstrap, prompts: Sequence[Hashable] = ()
) -> Accuracy:
    """Accuracy over pairs; InputError for different lengths, fewer than two pairs, or scores that are not finite.

    If `prompts` names the prompt of each pair, whole prompts are resampled, because pairs of one prompt may share an
    answer.
    """
    chosen_P, rejected_P = np.asarray(chosen_P, dtype=np.float64), np.asarray(rejected_P, dtype=np.float64)
    if chosen_P.shape != rejected_P.shape:
        raise InputError(f"pair accuracy: {chosen_P.shape} chosen scores but {rejected_P.shape} rejected ones")
    broken = int((~np.isfinite(chosen_P) | ~np.isfinite(rejected_P)).sum())
    if broken:
        raise InputError(f"pair accuracy: {broken} of {chosen_P.size} pairs have a score that is not finite")
    right_P = (chosen_P > rejected_P).astype(np.float64)
    found = bootstrap.share(by_cluster(right_P, prompts) if prompts else right_P)
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    return Accuracy(
        interval=replace(found, mean=float(right_P.mean()), low=low, high=high),
        pairs=len(right_P),
        ties=int((chosen_P == rejected_P).sum()),
    )


def shuffled_labels(count: int, seed: int) -> NDArray[np.bool_]:
    """For each pair, whether to swap chosen and rejected: exactly half of the pairs, drawn by `seed`.

    A reward model trained on these pairs learns nothing about the labels; its accuracy on held-out pairs is the
    control. Exactly half are swapped, so that no label information is left on average.
    """
    flips_P = np.zeros(count, dtype=np.bool_)
    flips_P[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
    return flips_P
