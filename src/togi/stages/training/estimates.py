"""The cost of training on fixed data, and which parts of its schedule do not fit into its steps."""

import math
from collections.abc import Sequence

from togi.core.settings import Ref
from togi.stages.cost import Cost, Inputs, Load, count
from togi.stages.training.optimisation import FixedTraining, Optimisation


def fixed_cost(
    settings: FixedTraining, inputs: Inputs, refs: Sequence[Ref], *, sides: int = 1, block: int | None = None
) -> Cost:
    """Samples and tokens of a training on the records of `refs`, whose examples have `sides` sequences.

    With `block`, examples are concatenated and cut into blocks of that many tokens; 0: as many as the longest example
    has.
    """
    cost = Cost()
    if settings.steps is not None:
        cost.samples = settings.steps * settings.batch_size
    else:
        records, why = count(inputs, refs)
        if records is None:
            cost.unknown.append(f"samples and tokens: {why}")
            return cost
        share = settings.validation if isinstance(settings.validation, float) else 0.0
        cost.samples = max(1, round(records * (1 - share) * (settings.epochs or 1.0)))
    cost.steps = math.ceil(cost.samples / settings.batch_size)
    limit = math.inf if settings.max_length is None else settings.max_length * sides
    lengths = inputs.lengths(refs, inputs[settings.init], cost)
    if lengths is not None:
        mean, most = lengths
        cost.tokens = round(cost.samples * min(mean, limit))
        if block is not None:
            most = limit = 1 + (block or most)
            cost.steps = settings.steps or math.ceil(cost.tokens / most / settings.batch_size)
        cost.load = Load(step=settings.batch_size * min(most, limit), example=min(most, limit))
    elif settings.max_length is None:
        cost.unknown.append("tokens: lengths are unknown and max_length is not set")
    else:
        cost.tokens = round(cost.samples * limit)
        cost.notes.append("tokens: upper bound, with every record at max_length")
        cost.load = Load(step=settings.batch_size * limit, example=limit)
    return cost


def tell_schedule(settings: Optimisation, steps: int | None, cost: Cost) -> None:
    """Adds to `cost` what a training of at most `steps` steps cannot have."""
    told = [] if steps is None else [settings.long_warmup(steps), settings.lost_decay(steps)]
    cost.alarms += [f"training takes at most {each}" for each in told if each]
