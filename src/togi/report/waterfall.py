"""The record counts of a run, stage by stage: how many came in, went out and were dropped, with reasons."""

from collections.abc import Sequence
from dataclasses import dataclass

from togi.report.view import RunView, SourceView, StageView

UNSAID = "licence not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The records of one stage. `drops` are reasons with their counts, the most common first. `lost` counts records
    that disappeared without a reason; it is negative if more went out than came in."""

    stage: StageView
    came: int | None
    went: int | None
    held_out: int
    drops: Sequence[tuple[str, int]]
    lost: int

    @property
    def dropped(self) -> int:
        return sum(count for _, count in self.drops)


def waterfall(run: RunView) -> list[Step]:
    """A step for each stage that has counted records, in the order of the run."""
    counted = [stage for stage in run.stages if stage.counts_out is not None or stage.drops or stage.counts_in]
    return [_step(stage) for stage in counted]


def _step(stage: StageView) -> Step:
    return Step(
        stage=stage,
        came=stage.counts_in,
        went=stage.counts_out,
        held_out=stage.held_out,
        drops=sorted(stage.drops.items(), key=lambda item: -item[1]),
        lost=lost(stage),
    )


def lost(stage: StageView) -> int:
    """The number of records that neither went out nor were dropped for a reason; 0 for a stage that makes or selects
    records."""
    if stage.counts_in is None or stage.counts_out is None:
        return 0
    left = stage.counts_in - stage.counts_out - stage.held_out - sum(stage.drops.values())
    if stage.adds_up:
        return left
    return max(0, left) if stage.drops and stage.counts_out else 0


def licences(sources: Sequence[SourceView]) -> str:
    """The licences and terms of all sources, in one line."""
    return "; ".join(dict.fromkeys(map(in_words, sources)))


def in_words(source: SourceView) -> str:
    """A source with its licence and terms, and whether they are binding."""
    said = [source.licence or UNSAID, source.terms, "binding" if source.inherit else ""]
    return f"{source.dataset} ({', '.join(part for part in said if part)})"
