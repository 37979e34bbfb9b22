"""The reward model's objective: Bradley-Terry with optional margin and centring.

Letters: S sequences of a micro-batch; P its preference pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from togi.core.errors import RecipeError
from togi.objectives.base import Batch, Metrics, Output, mean_of, nonzero_total, require
from togi.objectives.pairs import pairs, sides


@dataclass(frozen=True, slots=True, kw_only=True)
class BradleyTerry:
    """mean over pairs of -log sigmoid(chosen - rejected - margin) + centring x (chosen + rejected)^2.

    Centring keeps the scores near zero; the loss alone fixes only differences. A tie counts as wrong in `accuracy`.
    """

    centring: float = 0.0
    margin: bool = False  # subtract the batch's margin_P

    def __post_init__(self) -> None:
        if self.centring < 0:
            raise RecipeError(f"objective.centring: found {self.centring}; allowed: 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        """The optional batch fields that these settings need."""
        return frozenset({"margin_P"}) if self.margin else frozenset()

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs."""
        return {"pairs": float(pairs(batch)[0].numel())}

    def loss(self, output: Output, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
        """The step's loss over the pairs of this micro-batch."""
        score_S = require(output.score_S, "score_S")
        chosen_P, rejected_P = sides(score_S, batch)
        difference_P = chosen_P - rejected_P
        target_P = require(batch.margin_P, "margin_P") if self.margin else 0.0
        loss_P = -logsigmoid(difference_P - target_P) + self.centring * (chosen_P + rejected_P) ** 2
        metrics: Metrics = {
            "accuracy": mean_of(difference_P > 0),
            "margin": mean_of(difference_P),
            "score_chosen": mean_of(chosen_P),
            "score_rejected": mean_of(rejected_P),
        }
        return loss_P.sum() / nonzero_total(totals, "pairs"), metrics
