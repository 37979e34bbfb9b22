"""How much the order of two answers sways a judge, which reveals a judge near chance.

A judge that guesses names the same winner in both orders on half of the questions; a judge that looks only at the
position does so on none. This needs no human labels. The measure is ours: no model card reports it.
"""

from collections.abc import Mapping, Sequence

from togi.evaluate.benchmarks.table import Cell
from togi.evaluate.statistics import wilson
from togi.evaluate.table import Metric

AGREE = Metric(
    name="orders agree",
    higher_is_better=True,
    share=True,
    note="share of questions with the same winner in both orders, among those with a winner in both; one half is "
    "chance",
)


def agreement(agree: Sequence[bool], level: float) -> Cell:
    """The share of questions on which both orders agree, with Wilson's interval; empty without such questions."""
    if not agree:
        return Cell(n=0)
    found = wilson(sum(agree), len(agree), level)
    return Cell(value=found.mean, low=found.low, high=found.high, n=len(agree))


def near_chance(agreed: Mapping[str, Sequence[bool]], what: str, level: float) -> list[str]:
    """A note for each model on whose answers the judge's two orders do not agree significantly more often than chance.
    `what` describes the two orders."""
    return [
        f"the judge is not distinguishable from chance on {model}: {what} agree on {sum(agree)} of {len(agree)} answers"
        for model, agree in agreed.items()
        if agree and wilson(sum(agree), len(agree), level).low <= 0.5
    ]
