"""SMPO: a reference-free margin between mean log-probabilities, and the cross entropy of both answers.

    l = mean log-probability of an answer's tokens     z = l(chosen) - l(rejected) - target_margin
    loss = mean over pairs of shape(z) + sft_weight x (r x CE(chosen tokens) + (1 - r) x CE(rejected tokens))

    loss_type            shape(z)
    sigmoid              -log sigmoid(beta z)
    hinge                max(0, -beta z)
    ipo                  (beta z)^2
    smooth_lower_bound   max(0, -beta z)^2: zero once the margin is reached
    smooth_double_bound  the same + max(0, beta (z - margin_delta))^2: rises again beyond margin_delta

Source: the published trainer of Vikhr-Nemo (docs/methods.md). r is `chosen_sft_ratio`; below 1 the cross entropy also
trains on rejected answers. Pairs and the tokens of each side are counted over the whole step. SimPO (arXiv 2405.14734)
is `sigmoid` with target_margin = gamma / beta and sft_weight = 0. A pair of equal answers has z = -target_margin, and
the gradients of its shape cancel.

Letters: N scored tokens of a micro-batch; S its sequences; P its preference pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from togi.objectives.base import (
    Batch,
    Metrics,
    Output,
    nonzero_total,
    require,
    segment_length,
    segment_mean,
    segment_sum,
)
from togi.objectives.checks import check_choice, check_ranges, refuse
from togi.objectives.clipping import Clipping
from togi.objectives.pairs import logp_metrics, pair_counts, reward_metrics, sides
from togi.objectives.rules import smpo_problem

LossType = Literal["sigmoid", "hinge", "ipo", "smooth_lower_bound", "smooth_double_bound"]
FIRST_MARGIN = 0.01


def margin_at(step: int, total_steps: int, target: float) -> float:
    """The margin schedule: linear from 0.01 at step 0 to `target` at `total_steps`, then constant."""
    return FIRST_MARGIN + (target - FIRST_MARGIN) * min(step / total_steps, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SMPO:
    """Simple margin preference optimisation. Raises RecipeError for settings that do not fit together."""

    loss_type: LossType = "smooth_lower_bound"
    beta: float = 1.2
    target_margin: float = 0.35  # nats per token
    margin_delta: float | None = None  # smooth_double_bound: width of the band above the margin, nats per token
    chosen_sft_ratio: float = 0.8
    sft_weight: float = 1.0
    clipping: Clipping = field(default_factory=Clipping)  # off

    def __post_init__(self) -> None:
        check_choice("loss_type", self.loss_type, SHAPES)
        fits = {
            "beta": self.beta > 0,
            "target_margin": self.target_margin >= 0,
            "margin_delta": self.margin_delta is None or self.margin_delta > 0,
            "chosen_sft_ratio": 0 <= self.chosen_sft_ratio <= 1,
            "sft_weight": self.sft_weight >= 0,
        }
        check_ranges(
            fits, "beta > 0, target_margin >= 0, margin_delta > 0, 0 <= chosen_sft_ratio <= 1, sft_weight >= 0"
        )
        refuse(smpo_problem(self.loss_type, self.margin_delta))

    @property
    def needs(self) -> frozenset[str]:
        """The terminator mask, if `flip_terminator` is set."""
        return frozenset({"terminator_N"}) if self.clipping.flip_terminator else frozenset()

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs, and the tokens of both sides. Raises StageError for an answer without a scored token."""
        return pair_counts(batch)

    def loss(self, output: Output, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
        """The step's loss over the pairs of this micro-batch."""
        logp_N = require(output.logp_N, "logp_N")
        segments = batch.sequence_N, batch.num_sequences
        chosen_P, _ = sides(segment_mean(self.clipping.chosen(logp_N, batch), *segments), batch)
        _, rejected_P = sides(segment_mean(self.clipping.rejected(logp_N, batch), *segments), batch)
        shape_P = SHAPES[self.loss_type](self, chosen_P - rejected_P - self.target_margin)

        sum_S = segment_sum(logp_N, *segments)
        sum_chosen_P, sum_rejected_P = sides(sum_S, batch)
        cross_chosen = -sum_chosen_P.sum() / nonzero_total(totals, "chosen_tokens")
        cross_rejected = -sum_rejected_P.sum() / nonzero_total(totals, "rejected_tokens")
        r = self.chosen_sft_ratio
        loss = shape_P.sum() / nonzero_total(totals, "pairs")
        loss = loss + self.sft_weight * (r * cross_chosen + (1 - r) * cross_rejected)
        metrics = reward_metrics(self.beta * chosen_P, self.beta * rejected_P)
        metrics["target_margin"] = (self.target_margin * len(chosen_P), float(len(chosen_P)))
        return loss, metrics | logp_metrics(sum_S, segment_length(logp_N, *segments), batch)


def _sigmoid(settings: SMPO, z_P: Tensor) -> Tensor:
    return -logsigmoid(settings.beta * z_P)


def _hinge(settings: SMPO, z_P: Tensor) -> Tensor:
    return (-settings.beta * z_P).relu()


def _ipo(settings: SMPO, z_P: Tensor) -> Tensor:
    return (settings.beta * z_P) ** 2


def _lower_bound(settings: SMPO, z_P: Tensor) -> Tensor:
    return _hinge(settings, z_P) ** 2


def _double_bound(settings: SMPO, z_P: Tensor) -> Tensor:
    assert settings.margin_delta is not None  # checked in __post_init__
    return _lower_bound(settings, z_P) + _hinge(settings, settings.margin_delta - z_P) ** 2


SHAPES: dict[str, Callable[[SMPO, Tensor], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "smooth_lower_bound": _lower_bound,
    "smooth_double_bound": _double_bound,
}
