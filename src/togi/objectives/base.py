"""What an objective sees and gives: a micro-batch as flat tensors, and segment sums over its sequences.

Letters: N scored tokens of a micro-batch, laid end to end; S its sequences; P its preference pairs.

A loss divides by `totals`, the counts summed over all micro-batches (and ranks) of the step, so that no result depends
on how the step was cut. Metrics are (sum, weight) pairs, which add over micro-batches for the same reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch import Tensor

from togi.core.errors import RecipeError, StageError

Metrics = dict[str, tuple[Tensor | float, Tensor | float]]


def _no_tokens() -> Tensor:
    return torch.empty(0, dtype=torch.long)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the model says about a micro-batch.

    `logp_N` in nats; `score_S` one number a sequence; `entropy_N` in nats, without a graph; `aux` a scalar loss of the
    model's own (router), which the loop adds as the mean over micro-batches.
    """

    logp_N: Tensor | None = None
    score_S: Tensor | None = None
    entropy_N: Tensor | None = None
    aux: Tensor | None = None


def on_host(output: Output) -> Output:
    """The same numbers in host memory, without their graph, so that another process can read them."""
    moved = {f.name: getattr(output, f.name) for f in fields(output)}
    return Output(**{name: None if value is None else value.detach().cpu() for name, value in moved.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The numbers of a micro-batch that objectives read. Sequences and pairs are never cut over micro-batches.

    `sequence_N` (int64) says which sequence a scored token belongs to. `old_logp_N` are of the policy that the step
    began with (absent: of the policy itself), `ref_logp_N` of the stage's initial model and `ref_logp_S` its sums over
    each sequence, `sampler_logp_N` those that the sampler reported (NaN where it did not). `terminator_N` (bool) marks
    the tokens of the terminator. Pair p is (2p, 2p + 1) unless `chosen_P` and `rejected_P` are given.
    """

    num_sequences: int
    sequence_N: Tensor = field(default_factory=_no_tokens)
    advantage_S: Tensor | None = None
    old_logp_N: Tensor | None = None
    ref_logp_N: Tensor | None = None
    ref_logp_S: Tensor | None = None
    sampler_logp_N: Tensor | None = None
    terminator_N: Tensor | None = None
    chosen_P: Tensor | None = None
    rejected_P: Tensor | None = None
    margin_P: Tensor | None = None
    idle_sequences: int = 0
    idle_tokens: int = 0

    def absent(self, names: Iterable[str]) -> list[str]:
        """Those of the optional fields `names` that this batch does not have, sorted."""
        optional = {
            "advantage_S": self.advantage_S,
            "old_logp_N": self.old_logp_N,
            "ref_logp_N": self.ref_logp_N,
            "ref_logp_S": self.ref_logp_S,
            "sampler_logp_N": self.sampler_logp_N,
            "terminator_N": self.terminator_N,
            "chosen_P": self.chosen_P,
            "rejected_P": self.rejected_P,
            "margin_P": self.margin_P,
        }
        return sorted(name for name in names if optional[name] is None)


class Objective(Protocol):
    """A loss. It never sees a model, a rank, a logger or a step."""

    @property
    def needs(self) -> frozenset[str]:
        """Optional fields of `Batch` that `loss` reads; the loop checks them once."""
        ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by, for one micro-batch."""
        ...

    def loss(self, output: Output, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
        """This micro-batch's share of the step's loss (a scalar with a graph), and metrics."""
        ...


def require(value: Tensor | None, name: str) -> Tensor:
    """`value`, which this objective cannot do without. Raises StageError."""
    if value is None:
        raise StageError(f"the objective needs {name}, which the model or the batch did not give")
    return value


def nonzero_total(totals: Mapping[str, float], name: str) -> float:
    """The step's count that a loss divides by. Raises StageError where there was nothing to count."""
    if not totals[name]:
        raise StageError(
            f"the step has no {name.replace('_', ' ')}, so its loss is not defined: every token is masked, or every "
            "answer was cut off; `togi check` shows the mask of samples"
        )
    return totals[name]


def check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Raises RecipeError unless `value` is one of `allowed`."""
    if value not in tuple(allowed):
        raise RecipeError(f"objective.{key}: {value!r} is not available; allowed: {', '.join(allowed)}")


def check_ranges(fits: Mapping[str, bool], allowed: str) -> None:
    """Raises RecipeError naming the settings that do not fit."""
    wrong = [name for name, fine in fits.items() if not fine]
    if wrong:
        raise RecipeError(f"objective: {', '.join(wrong)} out of range; allowed: {allowed}")


def segment_sum(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Sums over the tokens of each sequence: (num_sequences,); 0 for a sequence without tokens."""
    return value_N.new_zeros(num_sequences).index_add(0, sequence_N, value_N)


def segment_length(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Number of scored tokens of each sequence in the type of `value_N`, at least 1 so that it can divide."""
    return segment_sum(torch.ones_like(value_N), sequence_N, num_sequences).clamp(min=1)


def segment_mean(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Means over the tokens of each sequence: (num_sequences,); 0 for a sequence without tokens."""
    sum_S = segment_sum(value_N, sequence_N, num_sequences)
    return sum_S / segment_length(value_N, sequence_N, num_sequences)


def mean_of(value: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """A metric that is a plain mean over the elements of `value`, without its graph."""
    return value.detach().sum(dtype=torch.float64), float(value.numel())


def add_metrics(into: Metrics, metrics: Metrics) -> None:
    """Adds the (sum, weight) pairs of one micro-batch to those of the step."""
    for name, (total, weight) in metrics.items():
        old_total, old_weight = into.get(name, (0.0, 0.0))
        into[name] = (old_total + total, old_weight + weight)


def read_metrics(metrics: Metrics) -> dict[str, float]:
    """The step's weighted means as numbers; what has no weight is left out."""
    return {name: float(total) / float(weight) for name, (total, weight) in sorted(metrics.items()) if float(weight)}
