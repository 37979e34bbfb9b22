"""A judge's rates, people's rates on some of the same answers, and the judge's rates corrected with them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from togi.evaluate.benchmarks.table import Cell, Part
from togi.evaluate.calibration import FEWEST, clustered_mean, prediction_powered
from togi.evaluate.table import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A rate of one subject, from 0 to 1: for each answer its question, the judge's value, and people's value if there
    is one."""

    questions: Sequence[Hashable]
    judged: Sequence[float]
    human: Sequence[float | None]

    def cells(self, level: float) -> tuple[Cell, Cell]:
        """(people's rate, the judge's rate corrected with it); empty cells for labels of fewer than two questions."""
        known = [place for place, value in enumerate(self.human) if value is not None]
        rest = [place for place, value in enumerate(self.human) if value is None]
        truth = [value for value in self.human if value is not None]
        own = [self.questions[place] for place in known]
        if len(dict.fromkeys(own)) < 2:
            note = f"{len(known)} labels; needs labels of two questions"
            return Cell(n=len(known), note=note), Cell(n=len(known), note=note)
        people = clustered_mean(truth, own, level)
        found = prediction_powered(
            truth,
            [self.judged[place] for place in known],
            [self.judged[place] for place in rest],
            prompts_L=own,
            prompts_U=[self.questions[place] for place in rest],
            level=level,
        )
        note = f"{len(known)} labels" + (f": fewer than {FEWEST}" if len(known) < FEWEST else "")
        return (
            Cell(value=people.mean, low=people.low, high=people.high, n=len(known), note=note),
            Cell(value=found.mean, low=found.low, high=found.high, n=len(self.human), note=note),
        )


def corrected_part(pairings: Mapping[str, Mapping[Metric, Pairing]], level: float) -> Part:
    """A table with two columns for each rate. `pairings` are by subject, then by rate."""
    columns: dict[str, Metric] = {}
    cells: dict[str, dict[str, Cell]] = {}
    for subject, rates in pairings.items():
        cells[subject] = {}
        for rate, pairing in rates.items():
            people, better = pairing.cells(level)
            for word, cell in (("people", people), ("corrected", better)):
                name = f"{rate.name}: {word}"
                columns[name] = Metric(name=name, higher_is_better=rate.higher_is_better, share=rate.share)
                cells[subject][name] = cell
    return Part(
        title="corrected for the judge's errors",
        columns=list(columns.values()),
        cells=cells,
        note="prediction-powered inference from human labels of some of these answers, drawn at random",
    )
