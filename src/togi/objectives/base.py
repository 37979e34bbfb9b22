"""The inputs and outputs of objectives: a micro-batch as flat tensors, and segment sums over its sequences.

Letters: N scored tokens of a micro-batch, concatenated; S its sequences; P its preference pairs.

A loss divides by `totals`, the counts summed over all micro-batches (and ranks) of the step, so that no result depends
on how the step was split. Metrics are (sum, weight) pairs, which add over micro-batches for the same reason; the names
of maxima end with `LARGEST`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch import Tensor

from togi.core.errors import StageError

Metrics = dict[str, tuple[Tensor | float, Tensor | float]]


def _no_tokens() -> Tensor:
    return torch.empty(0, dtype=torch.long)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The model's outputs for a micro-batch.

    `logp_N` in nats; `score_S` one number per sequence; `entropy_N` in nats, without a graph; `aux` the model's own
    scalar loss (router), which the loop adds as the mean over micro-batches.
    """

    logp_N: Tensor | None = None
    score_S: Tensor | None = None
    entropy_N: Tensor | None = None
    aux: Tensor | None = None


def on_host(output: Output) -> Output:
    """A copy in host memory, detached, so that another process can read it."""
    moved = {f.name: getattr(output, f.name) for f in fields(output)}
    return Output(**{name: None if value is None else value.detach().cpu() for name, value in moved.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The fields of a micro-batch that objectives read. Sequences and pairs are never split over micro-batches.

    `sequence_N` (int64) is the sequence of each scored token. Log-probabilities: `old_logp_N` under the policy at the
    start of the step (absent: under the policy itself), `ref_logp_N` under the stage's initial model, `ref_logp_S` its
    sums per sequence, `sampler_logp_N` as reported by the sampler (NaN if it reported none). `terminator_N` (bool)
    marks terminator tokens. Pair p is (2p, 2p + 1) unless `chosen_P` and `rejected_P` are given. `example_S` is the
    example that each sequence belongs to (absent: each is one of its own).
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
    example_S: Tensor | None = None
    idle_sequences: int = 0
    idle_tokens: int = 0

    def absent(self, names: Iterable[str]) -> list[str]:
        """The optional fields among `names` that this batch lacks, sorted."""
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
        """The counts of one micro-batch; `loss` divides by their totals."""
        ...

    def loss(self, output: Output, batch: Batch, totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
        """This micro-batch's share of the step's loss (a scalar with a graph), and metrics."""
        ...


def require(value: Tensor | None, name: str) -> Tensor:
    """Returns `value`. Raises StageError if it is None, because the objective needs it."""
    if value is None:
        raise StageError(f"the objective needs {name}, but the model or the batch has none")
    return value


def nonzero_total(totals: Mapping[str, float], name: str) -> float:
    """The step's total of a count, for a loss to divide by. Raises StageError if it is 0."""
    if not totals[name]:
        raise StageError(
            f"the step has no {name.replace('_', ' ')}, so its loss is undefined: every token is masked, or every "
            "answer was cut off; `togi check` shows the loss mask of samples"
        )
    return totals[name]


def segment_sum(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Sum over the tokens of each sequence: (num_sequences,). A sequence without tokens gives 0."""
    return value_N.new_zeros(num_sequences).index_add(0, sequence_N, value_N)


def segment_length(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Number of scored tokens of each sequence, at least 1, in the type of `value_N`: (num_sequences,)."""
    return segment_sum(torch.ones_like(value_N), sequence_N, num_sequences).clamp(min=1)


def segment_mean(value_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Mean over the tokens of each sequence: (num_sequences,). A sequence without tokens gives 0."""
    sum_S = segment_sum(value_N, sequence_N, num_sequences)
    return sum_S / segment_length(value_N, sequence_N, num_sequences)


def mean_of(value: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """The (sum, weight) pair of a metric that is the mean of `value`, detached."""
    return value.detach().sum(dtype=torch.float64), float(value.numel())


LARGEST = "/max"
"""The suffix of metrics that are the maximum of all values, as (value, 1) pairs."""


def largest_of(value: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """The pair of a metric that is the maximum of `value`, detached; its weight is 0 if `value` is empty."""
    return (value.detach().max(), 1.0) if value.numel() else (0.0, 0.0)


def add_metrics(into: Metrics, metrics: Metrics) -> None:
    """Adds the pairs of one micro-batch to those of the step."""
    for name, (total, weight) in metrics.items():
        old_total, old_weight = into.get(name, (0.0, 0.0))
        if name.endswith(LARGEST) and float(weight) and float(old_weight):
            into[name] = (max(old_total, total, key=float), 1.0)
        else:
            into[name] = (old_total + total, old_weight + weight)


def read_metrics(metrics: Metrics) -> dict[str, float]:
    """The step's weighted means as numbers; metrics without weight are left out."""
    return {name: float(total) / float(weight) for name, (total, weight) in sorted(metrics.items()) if float(weight)}
