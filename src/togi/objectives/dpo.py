"""DPO, hinge, IPO, robust DPO and CPO: preference losses on log-ratios to the initial model.

    loss_type      loss of a pair                                            source
    sigmoid        -log sigmoid(beta d)                                      arXiv 2305.18290
    sigmoid_norm   the same, d from means over each answer's tokens          arXiv 2411.15124
    hinge          max(0, 1 - beta d)                                        arXiv 2305.10425, 2309.06657
    ipo            (d - 1 / (2 beta))^2, d from means too                    arXiv 2310.12036
    robust         sigmoid, corrected for a known share of flipped labels    arXiv 2403.00409

d is the chosen answer's log-ratio to the stage's initial model minus that of the rejected one. `sft_weight` adds the
cross entropy of the chosen tokens (RPO, arXiv 2404.19733). `reference=False` uses log-probabilities instead of
log-ratios, which is CPO (arXiv 2401.08417) with `sft_weight=1`. Pairs and tokens are counted over the whole step. A
pair of equal answers has d = 0: its loss follows from the table, and its gradients cancel.

Letters: N scored tokens of a micro-batch; S its sequences; P its preference pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from togi.objectives.base import Batch, Metrics, Output, mean_of, nonzero_total, require, segment_length, segment_sum
from togi.objectives.checks import check_choice, check_ranges, refuse
from togi.objectives.pairs import logp_metrics, pair_counts, reward_metrics, sides
from togi.objectives.rules import dpo_problem

LossType = Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust"]
AVERAGED = ("sigmoid_norm", "ipo")  # d is a difference of means over tokens, not of sums


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO:
    """Direct preference optimisation. Raises RecipeError for settings that do not fit together."""

    loss_type: LossType = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0  # share of pairs that are assumed to have flipped labels
    sft_weight: float = 0.0
    reference: bool = True

    def __post_init__(self) -> None:
        check_choice("loss_type", self.loss_type, SHAPES)
        fits = {
            "beta": self.beta > 0,
            "label_smoothing": 0 <= self.label_smoothing < 0.5,
            "sft_weight": self.sft_weight >= 0,
        }
        check_ranges(fits, "beta > 0, 0 <= label_smoothing < 0.5, sft_weight >= 0")
        refuse(dpo_problem(self.loss_type, self.label_smoothing))

    @property
    def needs(self) -> frozenset[str]:
        """The reference's summed log-probabilities, if there is a reference."""
        return frozenset({"ref_logp_S"}) if self.reference else frozenset()

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs, and the tokens of both sides. Raises StageError for an answer without a scored token."""
        return pair_counts(batch)

    def loss(self, output: Output, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
        """The step's loss over the pairs of this micro-batch."""
        logp_N = require(output.logp_N, "logp_N")
        sum_S = segment_sum(logp_N, batch.sequence_N, batch.num_sequences)
        length_S = segment_length(logp_N, batch.sequence_N, batch.num_sequences)
        ratio_S = sum_S - require(batch.ref_logp_S, "ref_logp_S").to(sum_S) if self.reference else sum_S
        chosen_P, rejected_P = sides(ratio_S / length_S if self.loss_type in AVERAGED else ratio_S, batch)
        loss = SHAPES[self.loss_type](self, chosen_P - rejected_P).sum() / nonzero_total(totals, "pairs")
        if self.sft_weight:
            loss = loss - self.sft_weight * sides(sum_S, batch)[0].sum() / nonzero_total(totals, "chosen_tokens")
        metrics = reward_metrics(*sides(self.beta * ratio_S, batch)) | logp_metrics(sum_S, length_S, batch)
        if self.reference:
            metrics["chosen_change"] = mean_of(
                sides(ratio_S / length_S, batch)[0]
            )  # nats per token; negative: less likely
        return loss, metrics


def _smoothed(settings: DPO, difference_P: Tensor) -> Tensor:
    logit_P, flipped = settings.beta * difference_P, settings.label_smoothing
    return -(1 - flipped) * logsigmoid(logit_P) - flipped * logsigmoid(-logit_P)


def _robust(settings: DPO, difference_P: Tensor) -> Tensor:
    logit_P, flipped = settings.beta * difference_P, settings.label_smoothing
    return (-(1 - flipped) * logsigmoid(logit_P) + flipped * logsigmoid(-logit_P)) / (1 - 2 * flipped)


def _hinge(settings: DPO, difference_P: Tensor) -> Tensor:
    return (1 - settings.beta * difference_P).relu()


def _ipo(settings: DPO, difference_P: Tensor) -> Tensor:
    return (difference_P - 1 / (2 * settings.beta)) ** 2


SHAPES: dict[str, Callable[[DPO, Tensor], Tensor]] = {
    "sigmoid": _smoothed,
    "sigmoid_norm": _smoothed,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
}
