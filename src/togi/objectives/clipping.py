"""Clipping of token log-probabilities, so that single tokens do not dominate the means that a preference loss compares.

The published trainer intends this per micro-batch, but a bug disables it (docs/methods.md), so it is off by default.
Here the quantiles are taken per answer, so that results do not depend on how a step is split. With micro-batches of one
pair, as published, both definitions agree.

Letters: N scored tokens of a micro-batch; S its sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from togi.objectives.base import Batch, require
from togi.objectives.checks import check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    """Three rules, applied in this order.

    `flip_terminator` rewards the terminator of a rejected answer instead of penalising it. A rejected token below its
    answer's `lower_quantile`, or a chosen one above its answer's `upper_quantile`, counts as that quantile. A rejected
    token below `min_logp` (nats) counts as `min_logp`. Replaced tokens have no gradient.
    """

    flip_terminator: bool = False
    lower_quantile: float | None = None
    upper_quantile: float | None = None
    min_logp: float | None = None

    def __post_init__(self) -> None:
        fits = {
            "lower_quantile": self.lower_quantile is None or 0 < self.lower_quantile <= 0.5,
            "upper_quantile": self.upper_quantile is None or 0.5 <= self.upper_quantile < 1,
            "min_logp": self.min_logp is None or self.min_logp < 0,
        }
        check_ranges(fits, "0 < lower_quantile <= 0.5, 0.5 <= upper_quantile < 1, min_logp < 0")

    def chosen(self, logp_N: Tensor, batch: Batch) -> Tensor:
        """Clipped log-probabilities for chosen answers: (N,)."""
        if self.upper_quantile is None:
            return logp_N
        limit_S = segment_quantile(logp_N, batch.sequence_N, batch.num_sequences, self.upper_quantile)
        return torch.where(logp_N > limit_S[batch.sequence_N], limit_S[batch.sequence_N], logp_N)

    def rejected(self, logp_N: Tensor, batch: Batch) -> Tensor:
        """Clipped log-probabilities for rejected answers: (N,)."""
        if self.flip_terminator:
            logp_N = torch.where(require(batch.terminator_N, "terminator_N"), -logp_N, logp_N)
        if self.lower_quantile is not None:
            limit_S = segment_quantile(logp_N, batch.sequence_N, batch.num_sequences, self.lower_quantile)
            logp_N = torch.where(logp_N < limit_S[batch.sequence_N], limit_S[batch.sequence_N], logp_N)
        return logp_N if self.min_logp is None else logp_N.clamp(min=self.min_logp)


def segment_quantile(value_N: Tensor, sequence_N: Tensor, num_sequences: int, share: float) -> Tensor:
    """Quantile over the tokens of each sequence, linearly interpolated, detached: (num_sequences,). A sequence without
    tokens gives 0."""
    if not value_N.numel():
        return value_N.new_zeros(num_sequences)
    value_N = value_N.detach()
    order_N = value_N.argsort()
    order_N = order_N[sequence_N[order_N].argsort(stable=True)]  # by sequence, and within it by value
    length_S = torch.bincount(sequence_N, minlength=num_sequences)
    place_S = share * (length_S - 1).clamp(min=0).to(value_N.dtype)
    below_S = place_S.floor()
    first_S = (length_S.cumsum(0) - length_S + below_S.long()).clamp(max=len(value_N) - 1)
    second_S = (first_S + (below_S < place_S)).clamp(max=len(value_N) - 1)
    low_S, high_S = value_N[order_N[first_S]], value_N[order_N[second_S]]
    return torch.lerp(low_S, high_S, place_S - below_S) * (length_S > 0)
