"""Preference pairs: which sequences of a micro-batch are compared, and their counts and metrics.

Letters: S sequences of a micro-batch; P its preference pairs. A sequence may be in several pairs.
"""

import torch
from torch import Tensor

from togi.core.errors import StageError
from togi.objectives.base import Batch, Metrics, mean_of


def pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Indices of the chosen and the rejected sequences: as given, or the even and the odd ones.

    Raises StageError for an odd number of sequences."""
    if batch.chosen_P is not None and batch.rejected_P is not None:
        return batch.chosen_P, batch.rejected_P
    if batch.num_sequences % 2:
        raise StageError(f"preference pairs need an even number of sequences, found {batch.num_sequences}")
    even_P = torch.arange(0, batch.num_sequences, 2)
    return even_P, even_P + 1


def sides(value_S: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The values of the chosen and the rejected sequences: (P,), (P,)."""
    chosen_P, rejected_P = (index_P.to(value_S.device) for index_P in pairs(batch))
    return value_S[chosen_P], value_S[rejected_P]


def pair_counts(batch: Batch) -> dict[str, float]:
    """Counts pairs, and the scored tokens of chosen and rejected answers.

    Raises StageError for an answer without a scored token, which has no log-probability to compare.
    """
    lengths = torch.bincount(batch.sequence_N, minlength=batch.num_sequences).tolist()
    chosen, rejected = ([lengths[s] for s in index_P.tolist()] for index_P in pairs(batch))
    empty = [p for p, both in enumerate(zip(chosen, rejected, strict=True)) if not min(both)]
    if empty:
        raise StageError(
            f"an answer of pair {empty[0]} of the micro-batch ({len(empty)} of {len(chosen)} pairs) has no scored "
            "token, so its log-probability cannot be compared; drop pairs with empty or cut-off answers"
        )
    return {
        "pairs": float(len(chosen)),
        "chosen_tokens": float(sum(chosen)),
        "rejected_tokens": float(sum(rejected)),
    }


def reward_metrics(chosen_P: Tensor, rejected_P: Tensor) -> Metrics:
    """Means of the rewards of both sides and of their difference. A tie counts as wrong in `accuracy`."""
    return {
        "accuracy": mean_of(chosen_P > rejected_P),
        "margin": mean_of(chosen_P - rejected_P),
        "reward_chosen": mean_of(chosen_P),
        "reward_rejected": mean_of(rejected_P),
    }


def logp_metrics(sum_S: Tensor, length_S: Tensor, batch: Batch) -> Metrics:
    """Mean token log-probabilities of both sides in nats, from each answer's sum and length."""
    names = ("logp_chosen", "logp_rejected")
    totals = zip(sides(sum_S.detach(), batch), sides(length_S, batch), strict=True)
    return {
        name: (sum_P.sum(dtype=torch.float64), length_P.sum(dtype=torch.float64))
        for name, (sum_P, length_P) in zip(names, totals, strict=True)
    }
