"""The plots of a benchmark's table: a scatter plot of two columns, a leaderboard, a radar plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from togi.report.leaderboard import Place, board
from togi.report.radar import radar
from togi.report.scatter import Point, Series, scatter
from togi.report.view import BenchmarkView, Cells, CellView, PlotView

NO_CELL = CellView()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A plot with its title; name i of `legend` has colour i of the page."""

    title: str
    drawn: Markup
    legend: Sequence[str] = ()


def pictures(found: BenchmarkView) -> list[Picture]:
    """All plots of a table that are not empty."""
    made = [_DRAWN[plot.kind](found, plot) for plot in found.plots]
    return [picture for picture in made if picture.drawn]


def _scatter(found: BenchmarkView, plot: PlotView) -> Picture:
    across, up = plot.columns
    series = [Series(name=name, points=_points({name: row}, across, up)) for name, row in found.cells.items()]
    line = _part(found, plot.part)
    if line:
        series.append(Series(name=plot.part, points=_points(line, across, up, named=True), dashed=True))
    shown = [one for one in series if one.points]
    title = f"{up} against {across}"
    return Picture(title=title, drawn=scatter(title, shown, across=across, up=up), legend=[one.name for one in shown])


def _points(rows: Cells, across: str, up: str, *, named: bool = False) -> list[Point]:
    """The points of rows that have both numbers; labelled with their names if `named`."""
    found = []
    for name, row in rows.items():
        x, y = (row.get(column, NO_CELL) for column in (across, up))
        if x.value is not None and y.value is not None:
            label = name.removeprefix("best of ") if named else ""
            found.append(Point(x=x.value, y=y.value, low=y.low, high=y.high, label=label))
    return found


def _leaderboard(found: BenchmarkView, plot: PlotView) -> Picture:
    (name,) = plot.columns
    column = next(each for each in found.columns if each.name == name)
    places = [_place(subject, row.get(name, NO_CELL), column.share) for subject, row in found.cells.items()]
    places += [
        _place(model, row[name], column.share, told=True)
        for table in found.told()
        for model, row in table.cells.items()
        if name in row
    ]
    places.sort(
        key=lambda one: float("-inf") if one.rate is None else one.rate, reverse=column.higher_is_better is not False
    )
    base = next((one.rate for one in places if one.name == found.baseline and not one.told), None)
    title = f"{name}{', %' if column.share else ''}"
    return Picture(title=title, drawn=board(title, places, base))


def _place(name: str, cell: CellView, share: bool, *, told: bool = False) -> Place:
    """A model's entry in the leaderboard; shares in per cent."""
    rate, low, high = (None if x is None else 100 * x if share else x for x in (cell.value, cell.low, cell.high))
    return Place(name=name, rate=rate, low=low, high=high, told=told)


def _radar(found: BenchmarkView, plot: PlotView) -> Picture:
    part = next((each for each in found.parts if each.title == plot.part), None)
    if part is None:
        return Picture(title=plot.part, drawn=Markup(""))
    spokes = [column.name for column in part.columns]
    outlines = {name: [row.get(spoke, NO_CELL).value for spoke in spokes] for name, row in part.cells.items()}
    return Picture(title=plot.part, drawn=radar(plot.part, spokes, outlines), legend=list(outlines))


def _part(found: BenchmarkView, title: str) -> Mapping[str, Mapping[str, CellView]]:
    return next((part.cells for part in found.parts if part.title == title), {})


_DRAWN = {"scatter": _scatter, "leaderboard": _leaderboard, "radar": _radar}
