"""The initial model's log-probabilities of a stage's pairs, computed once before training and kept in its folder.

With an adapter they are computed with the adapter switched off, which is exactly the initial model.
"""

import math
from array import array
from collections.abc import Collection, Sequence
from dataclasses import replace

from togi.core.errors import StageError
from togi.model.adapter import without_adapter
from togi.objectives.base import require, segment_sum
from togi.stages.context import Context
from togi.stages.training.dpo import UNIT
from togi.stages.training.examples_work import Data, Example
from togi.stages.training.fit_work import TokenTask, outputs
from togi.stages.training.token_files_work import Changed


def with_reference(context: Context, task: TokenTask, budget: int, used: Collection[int] | None = None) -> Data:
    """The task's examples with the initial model's log-probability of each sequence, summed over its scored tokens.
    Only units with a validation pair or one of the `used` places of training (None: all) are computed; other pairs have
    no log-probabilities.

    Call it before anything is trained or restored. Units that an earlier run finished are read, not computed again.
    Raises StageError if a sum is not finite.
    """
    training, validation = task.data.training, task.data.validation
    count, total = len(training), len(training) + len(validation)
    units = range(-(-total // UNIT))
    needed = set(units) if used is None else {place // UNIT for place in (*used, *range(count, total))}
    ends = array("q", [0])
    sums = array("d")

    def make(number: int) -> list[list[float]]:
        places = range(number * UNIT, min((number + 1) * UNIT, total))
        if number not in needed:
            return [[] for _ in places]
        examples = [training[at] if at < count else validation[at - count] for at in places]
        return _sums(context, task, examples, budget)

    for values in context.stream_units(len(units), make, "reference"):
        for value in values:
            sums.extend(value)
            ends.append(len(sums))

    def fill(examples: Sequence[Example], first: int) -> Sequence[Example]:
        def changed(number: int, example: Example) -> Example:
            return replace(example, ref_logp=tuple(sums[ends[first + number] : ends[first + number + 1]]))

        return Changed(examples, changed)

    return replace(task.data, training=fill(training, 0), validation=fill(validation, count))


def _sums(context: Context, task: TokenTask, examples: Sequence[Example], budget: int) -> list[list[float]]:
    """One list per example, with one number per sequence (nats)."""
    sums: list[list[float]] = []
    with without_adapter(task.readable(context.ranks).net):
        for part, output in outputs(task, context, examples, budget):
            forest = task.plant(part)
            logp_N = require(output.logp_N, "logp_N").double().cpu()
            rest = iter(segment_sum(logp_N, forest.sequence_N, forest.num_sequences).tolist())
            sums += [[next(rest) for _ in example.group] for example in part]
    for example, values in zip(examples, sums, strict=True):
        if not all(math.isfinite(value) for value in values):
            raise StageError(
                f"stage {context.name}: the initial model gives pair {example.id} log-probabilities {values}, which "
                "are not finite; look at the pair with `togi trace RECIPE ID`, and check the model's weights"
            )
    return sums
