"""Supervised fine-tuning and instruction pre-training: the cross entropy of the scored tokens.

Letters: N scored tokens of a micro-batch, concatenated; S its sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from togi.objectives.base import Batch, Metrics, Output, mean_of, nonzero_total, require, segment_mean
from togi.objectives.checks import check_choice

Normalise = Literal["tokens", "sequences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT:
    """-log p, averaged over the scored tokens of the step (`tokens`), or first within each example (`sequences`), so
    that short chats weigh as much as long ones.

    An example without scored tokens is not counted. A step without scored tokens is an error, because it would change
    nothing.
    """

    normalise: Normalise = "tokens"

    def __post_init__(self) -> None:
        check_choice("normalise", self.normalise, ("tokens", "sequences"))

    @property
    def needs(self) -> frozenset[str]:
        """Nothing except the scored tokens."""
        return frozenset()

    def counts(self, batch: Batch) -> dict[str, float]:
        """Scored tokens, and examples that have any."""
        return {"tokens": float(batch.sequence_N.numel()), "sequences": float(_examples(batch).unique().numel())}

    def loss(self, output: Output, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
        """The step's loss over the tokens of this micro-batch."""
        logp_N = require(output.logp_N, "logp_N")
        metrics: Metrics = {"nll": mean_of(-logp_N)}
        if output.entropy_N is not None:
            metrics["entropy"] = mean_of(output.entropy_N)
        if self.normalise == "tokens":
            return -logp_N.sum() / nonzero_total(totals, "tokens"), metrics
        mean_S = segment_mean(logp_N, _examples(batch), batch.num_sequences)
        return -mean_S.sum() / nonzero_total(totals, "sequences"), metrics


def _examples(batch: Batch) -> Tensor:
    """The example of each scored token (N,)."""
    return batch.sequence_N if batch.example_S is None else batch.example_S[batch.sequence_N]
