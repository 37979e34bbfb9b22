"""What a stage's initial model says about its pairs: computed once, before anything is trained, and kept in its folder.

With an adapter it is computed with the adapter switched off, which is exactly the model that the stage began with.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from togi.core.errors import StageError
from togi.model.adapter import without_adapter
from togi.objectives.base import require, segment_sum
from togi.stages.context import Context
from togi.stages.training.examples_work import Data, Example
from togi.stages.training.fit_work import TokenTask, outputs

UNIT = 64
"""Pairs of one unit of work: by number alone, so that a unit's members never change."""


def with_reference(context: Context, task: TokenTask, budget: int) -> Data:
    """The task's examples with the initial model's log-probability of each sequence, summed over its scored tokens.

    Call it before anything is trained or restored. Units that an earlier run finished are read, not computed again.
    Raises StageError where a sum is not finite.
    """
    examples = [*task.data.training, *task.data.validation]
    parts = [examples[start : start + UNIT] for start in range(0, len(examples), UNIT)]
    found = context.units(len(parts), lambda number: _sums(context, task, parts[number], budget), "reference")
    filled = [
        replace(example, ref_logp=tuple(sums))
        for part, values in zip(parts, found, strict=True)
        for example, sums in zip(part, values, strict=True)
    ]
    count = len(task.data.training)
    return replace(task.data, training=filled[:count], validation=filled[count:])


def _sums(context: Context, task: TokenTask, examples: Sequence[Example], budget: int) -> list[list[float]]:
    """One list an example, one number a sequence (nats)."""
    sums: list[list[float]] = []
    with without_adapter(task.module.net):
        for part, output in outputs(task, context, examples, budget):
            forest = task.plant(part)
            logp_N = require(output.logp_N, "logp_N").double().cpu()
            rest = iter(segment_sum(logp_N, forest.sequence_N, forest.num_sequences).tolist())
            sums += [[next(rest) for _ in example.group] for example in part]
    for example, values in zip(examples, sums, strict=True):
        if not all(math.isfinite(value) for value in values):
            raise StageError(
                f"stage {context.name}: the initial model gives pair {example.id} log-probabilities {values}, which no "
                "training can start from; look at it with `togi show`, and at the model's weights"
            )
    return sums
