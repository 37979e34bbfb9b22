"""The one training loop.

Counts are summed over all micro-batches of a step before any loss is computed, so the weights after a step do not
depend on how it was cut. A step whose loss or gradient is not finite ends with an error before the weights change.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from togi.core.errors import StageError
from togi.objectives.base import Batch, Metrics, Objective, Output, add_metrics, read_metrics
from togi.train.optimizer import Update

Inputs = TypeVar("Inputs")
NAMED_ROWS = 8  # how many rows an error names


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch(Generic[Inputs]):
    """What one forward reads (`inputs`, of the model's own kind) and what the objective reads (`batch`).

    `rows` are record ids, for error messages; `num_tokens` counts the tokens that the model computes.
    """

    inputs: Inputs
    batch: Batch
    rows: tuple[str, ...] = ()
    num_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """A finished optimiser step. `grad_norm` is before clipping; `seconds` leave out the making of the batch."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    metrics: dict[str, float]
    num_tokens: int
    seconds: float


def train_steps(
    forward: Callable[[Inputs], Output],
    update: Update,
    objective: Objective | Callable[[int], Objective],
    steps: Iterable[Sequence[MicroBatch[Inputs]]],
    *,
    first_step: int = 0,
) -> Iterator[StepInfo]:
    """Trains on the micro-batches of each step and yields after it; a batch source may look at the model in between.

    `objective` may depend on the step (a schedule). Raises StageError for a loss or gradient that is not finite, before
    the weights change, and for a batch that lacks what the objective reads.
    """
    for step, micro_batches in enumerate(steps, first_step):
        start = time.perf_counter()
        loss, metrics = _accumulate(forward, _at(objective, step), micro_batches, step)
        grad_norm, learning_rate = update.apply(step, _rows(micro_batches))
        yield StepInfo(
            step=step,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            metrics=read_metrics(metrics),
            num_tokens=sum(micro.num_tokens for micro in micro_batches),
            seconds=time.perf_counter() - start,
        )


def _at(objective: Objective | Callable[[int], Objective], step: int) -> Objective:
    return objective(step) if callable(objective) else cast(Objective, objective)


def _accumulate(
    forward: Callable[[Inputs], Output],
    objective: Objective,
    micro_batches: Sequence[MicroBatch[Inputs]],
    step: int,
) -> tuple[float, Metrics]:
    """Adds the gradients of a whole step; gives its loss and metrics."""
    totals = _totals(objective, micro_batches, step)
    losses: list[Tensor] = []
    metrics: Metrics = {}
    for micro in micro_batches:
        output = forward(micro.inputs)
        loss, found = objective.loss(output, micro.batch, totals)
        if output.aux is not None:
            loss = loss + output.aux / len(micro_batches)
        loss.backward()
        losses.append(loss.detach())
        add_metrics(metrics, found)
    return _sum_finite(losses, micro_batches, step), metrics


def _totals(objective: Objective, micro_batches: Sequence[MicroBatch], step: int) -> dict[str, float]:
    """Counts summed over the step, after a look at whether the batches have what the objective reads."""
    if not micro_batches:
        raise StageError(f"step {step}: there is nothing to train on")
    totals: Counter[str] = Counter()
    for micro in micro_batches:
        absent = micro.batch.absent(objective.needs)
        if absent:
            raise StageError(f"step {step}: the objective reads {', '.join(absent)}, which the batch does not have")
        totals.update(objective.counts(micro.batch))
    return dict(totals)


def _sum_finite(losses: list[Tensor], micro_batches: Sequence[MicroBatch], step: int) -> float:
    """The step's loss. Raises StageError naming the rows of the micro-batches whose share is not finite."""
    values = torch.stack(losses).tolist()  # the only read-back of losses in a step
    broken = [micro for micro, loss in zip(micro_batches, values, strict=True) if not math.isfinite(loss)]
    if broken:
        raise StageError(
            f"step {step}: the loss is {sum(values)}; the weights are those of the step before. {_rows(broken)}. "
            "Try a lower learning rate, or look at these rows with `togi show`"
        )
    return float(sum(values))


def _rows(micro_batches: Sequence[MicroBatch]) -> str:
    """The first rows of some micro-batches, for a message."""
    rows = [row for micro in micro_batches for row in micro.rows]
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"Rows: {', '.join(rows[:NAMED_ROWS]) or 'not named'}{more}"
