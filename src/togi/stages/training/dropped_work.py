"""Tells how many records a training leaves out, and what to change if they are many."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from togi.stages.context import Context
from togi.stages.training.optimisation import FixedTraining, TokenisedTraining

SHARE = 0.1
"""The share of dropped records above which training raises an alarm."""
DROPPED = "dropped_records"
"""The name of that alarm."""
NOT_RENDERED = "not_rendered"
"""A reason for dropping a record, and the alarm about all records with it."""
LONG = ("too_long", "no_answer_after_truncation")
"""Reasons that another length or another treatment of long records would avoid."""


def dropped_warning(
    settings: TokenisedTraining, context: Context, told: Sequence[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """A warning if more than SHARE of the records were dropped, with the reasons and the settings to change. `told` are
    earlier warnings: one about records that are not rendered is not repeated."""
    known = {NOT_RENDERED} if NOT_RENDERED in dict(told) else set()
    drops = {reason: count for reason, count in context.drop_counts().items() if reason not in known}
    count, came = sum(drops.values()), context.counts.get("in", 0)
    if count <= SHARE * came:
        return []
    reasons = ", ".join(f"{reason} {number}" for reason, number in drops.items())
    what = f"{count} of {came} records ({count / came:.0%}) are dropped, so that training does not see them: {reasons}"
    return [(DROPPED, f"{what}; {remedy(settings, drops)}")]


def remedy(settings: TokenisedTraining, drops: Mapping[str, int]) -> str:
    """What to change so that fewer records are dropped."""
    other = [reason for reason in drops if reason not in LONG]
    data = [f"correct the data ({', '.join(other)})"] if other else []
    return "; ".join([*_longer(settings, drops), *data])


def _longer(settings: Any, drops: Mapping[str, int]) -> list[str]:
    """The advice about long records, if some were dropped."""
    if not any(reason in drops for reason in LONG):
        return []
    now, cuts = settings.max_length, [each for each in overflows(settings) if each.startswith("truncate")]
    first = "shorten them (the model's context is the limit)" if now is None else f"raise max_length (now {now})"
    can_cut = cuts and "too_long" in drops and getattr(settings, "packing", "apart") == "apart"
    return [first + (f", or set overflow: {' or '.join(cuts)}" if can_cut else "")]


def overflows(settings: FixedTraining) -> tuple[str, ...]:
    """The values that the stage allows for `overflow`."""
    return get_args(type(settings).model_fields["overflow"].annotation)


def tell_dropped(context: Context) -> None:
    """Logs how many records were dropped and why, at the end of a training."""
    if count := len(context.drops):
        context.log(f"{count} of {context.counts['in']} records were dropped: {context.drop_reasons()}")
