"""Published rows next to a benchmark's own: figures from a model card, under the columns that mean the same. They enter
no comparison and no figure of a stage."""

from collections.abc import Sequence
from dataclasses import replace

from togi.evaluate.benchmarks.table import Cell, Table, Told
from togi.evaluate.published import Metric, Published, Value, published


def with_published(found: Table, names: Sequence[str]) -> Table:
    """The table with the published tables of these names added. Raises InputError for an unknown name."""
    return replace(found, published=[told(published(name), found) for name in names])


def told(table: Published, found: Table) -> Told:
    """A published table under the columns of `found`, or of its part that measures the same. Columns missing there are
    left out."""
    part = next((each for each in found.parts if each.title == table.part), None)
    known = {each.name: each.share for each in (found.columns if part is None else part.columns)}
    places = {metric.name: next((name for name in metric.columns if name in known), None) for metric in table.metrics}
    cells = {
        row.model: {
            name: _cell(value, metric, known[name])
            for metric, value in zip(table.metrics, row.values, strict=True)
            if (name := places[metric.name]) is not None
        }
        for row in table.rows
    }
    return Told(
        title=table.title,
        card=table.card,
        source=table.source,
        licence=table.licence,
        how=table.how,
        part="" if part is None else part.title,
        cells=cells,
        notes={row.model: row.note for row in table.rows if row.note},
    )


def _cell(value: Value, metric: Metric, share: bool) -> Cell:
    """A figure as printed, in the unit of our column: shares from 0 to 1."""
    scale = 0.01 if share and metric.unit == "%" else 1.0
    number, low, high = (None if each is None else scale * each for each in (value.value, value.low, value.high))
    return Cell(value=number, low=low, high=high)
