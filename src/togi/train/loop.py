"""The one training loop: the steps of every training, whatever its objective, data and number of ranks.

Counts are summed over all micro-batches and ranks of a step before any loss is computed, so the weights do not depend
on how the step is split. A loss or gradient that is not finite raises an error before the weights change.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from togi.core.errors import StageError
from togi.core.ranks import ALONE, Ranks
from togi.objectives.base import Batch, Metrics, Objective, Output, add_metrics, read_metrics
from togi.train.optimizer import Update
from togi.train.precision import casts_kept

Inputs = TypeVar("Inputs")
NAMED_ROWS = 8  # rows that an error names at most


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch(Generic[Inputs]):
    """The inputs of one forward pass (`inputs`, of the model's type) and of the objective (`batch`).

    `rows` are record ids, for error messages; `num_tokens` counts the tokens that the model computes. An `idle`
    micro-batch keeps this rank in step with the others and has no weight.
    """

    inputs: Inputs
    batch: Batch
    rows: tuple[str, ...] = ()
    num_tokens: int = 0
    idle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """A finished optimiser step. `grad_norm` is the norm before clipping; `largest` the tokens of the largest
    micro-batch; `seconds` the time without building the batch."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    metrics: dict[str, float]
    num_tokens: int
    largest: int
    seconds: float


def train_steps(
    forward: Callable[[Inputs], Output],
    update: Update,
    objective: Objective | Callable[[int], Objective],
    steps: Iterable[Sequence[MicroBatch[Inputs]]],
    *,
    first_step: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[StepInfo]:
    """Trains on the micro-batches of each step and yields after it. A batch source may read the model in between.

    `objective` may depend on the step, as in a schedule. With several `ranks`, each has its own micro-batches, all of
    the same number (`Ranks.share`), and all yield the same values. Raises StageError if a loss or gradient is not
    finite, before the weights change, and if a batch lacks a field that the objective needs.
    """
    for step, micro_batches in enumerate(steps, first_step):
        start = time.perf_counter()
        with (
            nullcontext() if ranks.several else casts_kept()
        ):  # sharded weights are gathered and freed in each forward pass
            here = _accumulate(forward, _at(objective, step), micro_batches, step, ranks)
        found = _agree(here, step, ranks)
        ranks.sum_gradients(update.params)
        grad_norm, learning_rate = update.apply(step, _named(found.rows))
        yield StepInfo(
            step=step,
            loss=sum(found.losses),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            metrics=read_metrics(found.metrics),
            num_tokens=found.num_tokens,
            largest=found.largest,
            seconds=time.perf_counter() - start,
        )


def _at(objective: Objective | Callable[[int], Objective], step: int) -> Objective:
    return objective(step) if callable(objective) else cast(Objective, objective)


@dataclass(slots=True)
class _Found:
    """The results of a step's micro-batches, of one rank or of all."""

    losses: list[float]
    broken: list[str]
    rows: list[str]
    metrics: Metrics
    num_tokens: int
    largest: int


def _accumulate(
    forward: Callable[[Inputs], Output],
    objective: Objective,
    micro_batches: Sequence[MicroBatch[Inputs]],
    step: int,
    ranks: Ranks,
) -> _Found:
    """Adds the gradients of this rank's micro-batches."""
    totals, count = _totals(objective, micro_batches, step, ranks)
    losses: list[Tensor] = []
    metrics: Metrics = {}
    for micro in micro_batches:
        output = forward(micro.inputs)
        loss, found = objective.loss(output, micro.batch, totals)
        if output.aux is not None:
            loss = loss + output.aux / count
        if micro.idle:
            (loss * 0.0).backward()
            continue
        loss.backward()
        losses.append(loss.detach())
        add_metrics(metrics, found)
    working = [micro for micro in micro_batches if not micro.idle]
    values = torch.stack(losses).tolist() if losses else []  # the only read-back of losses in a step
    broken = [micro for micro, loss in zip(working, values, strict=True) if not math.isfinite(loss)]
    return _Found(
        losses=values,
        broken=[row for micro in broken for row in micro.rows or ("unknown",)],
        rows=[row for micro in working for row in micro.rows],
        metrics=metrics,
        num_tokens=sum(micro.num_tokens for micro in working),
        largest=max((micro.num_tokens for micro in working), default=0),
    )


def _totals(
    objective: Objective, micro_batches: Sequence[MicroBatch], step: int, ranks: Ranks
) -> tuple[dict[str, float], int]:
    """Sums the counts and the number of micro-batches over the step. Raises StageError if a batch lacks a field that
    the objective needs."""
    totals: Counter[str] = Counter()
    for micro in micro_batches:
        absent = micro.batch.absent(objective.needs)
        if absent:
            raise StageError(f"step {step}: the objective needs {', '.join(absent)}, which the batch does not have")
        if not micro.idle:
            totals.update(objective.counts(micro.batch))
    working = sum(not micro.idle for micro in micro_batches)
    if ranks.several:
        every = ranks.gather((totals, working))
        totals, working = Counter(), 0
        for counts, number in every:
            totals.update(counts)  # unlike +, keeps a count of 0
            working += number
    if not working:
        raise StageError(f"step {step}: there is nothing to train on")
    return dict(totals), working


def _agree(found: _Found, step: int, ranks: Ranks) -> _Found:
    """The results of all ranks. If a loss is not finite, raises StageError on every rank, with the rows of its
    micro-batch."""
    if ranks.several:
        found.metrics = {name: (float(total), float(weight)) for name, (total, weight) in found.metrics.items()}
        every = ranks.gather(found)
        tokens, largest = sum(other.num_tokens for other in every), max(other.largest for other in every)
        found = _Found([], [], [], {}, tokens, largest)
        for other in every:
            found.losses += other.losses
            found.broken += other.broken
            found.rows += other.rows
            add_metrics(found.metrics, other.metrics)
    if found.broken:
        raise StageError(
            f"step {step}: the loss is {sum(found.losses)}; the weights are those of the step before. "
            f"{_named(found.broken)}. Try a lower learning rate, or look at these rows with `togi trace RECIPE ID`"
        )
    return found


def _named(rows: Sequence[str]) -> str:
    """The first rows, for a message."""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"Rows: {', '.join(rows[:NAMED_ROWS]) or 'unknown'}{more}"
