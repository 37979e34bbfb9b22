"""How far a judge of two answers is swayed by the order in which they stand: the mark of a judge near chance.

A judge that sees no difference names the same winner in both orders of half of the questions, one that looks at the
place alone of none. This needs no labels of people. It is our reading: no card measures it.
"""

from collections.abc import Mapping, Sequence

from togi.evaluate.benchmarks.table import Cell
from togi.evaluate.statistics import wilson
from togi.evaluate.table import Metric

AGREE = Metric(
    name="orders agree",
    higher_is_better=True,
    share=True,
    note="of the questions of which the judge names a winner in both orders, the share with the same one; one half is "
    "chance",
)


def agreement(agree: Sequence[bool], level: float) -> Cell:
    """The share of questions in which both orders agree, with Wilson's interval; a dash where there is none."""
    if not agree:
        return Cell(n=0)
    found = wilson(sum(agree), len(agree), level)
    return Cell(value=found.mean, low=found.low, high=found.high, n=len(agree))


def near_chance(agreed: Mapping[str, Sequence[bool]], what: str, level: float) -> list[str]:
    """A note for each model on whose answers the judge's two orders agree no more often than chance, or are too few to
    tell. `what` are the two orders in words."""
    return [
        f"the judge cannot be told from chance on {model}: {what} agree on {sum(agree)} of {len(agree)} answers"
        for model, agree in agreed.items()
        if agree and wilson(sum(agree), len(agree), level).low <= 0.5
    ]
