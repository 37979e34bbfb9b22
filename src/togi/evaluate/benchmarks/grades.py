"""The table of question sets that a judge grades on a scale, such as MT-Bench, ELYZA-tasks-100, Tengu and Rakuda.

The score is the mean of all grades of a round, with all turns pooled, then the mean of the rounds (MT-Bench: Zheng and
others 2023, arXiv 2306.05685; llm-jp-judge). It is not the mean of the turns' means: if grades are missing, the two
differ.
"""

from dataclasses import replace

from togi.evaluate.benchmarks.judgments import (
    Frame,
    Judged,
    categories,
    category_cells,
    error_cells,
    item_values,
    judged_table,
    metric_cells,
    round_cells,
    score_cell,
)
from togi.evaluate.benchmarks.table import Cell, Part, Plot, Table
from togi.evaluate.table import Metric

SCORE = Metric(name="score", higher_is_better=True, note="mean of all grades of a round, then of the rounds")
CATEGORIES = "by category"
"""The part of the table that the report draws as a radar plot, if there are three categories or more."""


def table(judged: Judged, frame: Frame) -> Table:
    """The score of each subject, by turn, category and round, with the shares of failures.

    Differences from the baseline are paired by answer: question, turn and round.
    """
    level = frame.bootstrap.level
    turns = list(dict.fromkeys(each.turn for own in judged.values() for each in own))
    by_turn = [Metric(name=f"turn {turn}", higher_is_better=True) for turn in turns] if len(turns) > 1 else []
    cells: dict[str, dict[str, Cell]] = {}
    for subject, own in judged.items():
        cells[subject] = {SCORE.name: score_cell(own, level)}
        for turn, column in zip(turns, by_turn, strict=False):
            cells[subject][column.name] = score_cell([each for each in own if each.turn == turn], level)
        cells[subject] |= error_cells(own, level)
    values = item_values(judged, {SCORE.name: lambda each: each.score})
    plots = [Plot(kind="radar", part=CATEGORIES)] if len(categories(judged)) > 2 else []
    found = judged_table(judged, frame, cells, values, [SCORE], by_turn)
    return replace(found, parts=_parts(judged, level), plots=plots)


def _parts(judged: Judged, level: float) -> list[Part]:
    """The tables by category, by metric and by round, if there are several."""
    tables = {
        CATEGORIES: category_cells(judged, level),
        "by metric": metric_cells(judged, level),
        "by round": round_cells(judged, level),
    }
    names = {title: list(next(iter(cells.values()), {})) for title, cells in tables.items()}
    return [
        Part(title=title, columns=[Metric(name=name, higher_is_better=True) for name in names[title]], cells=cells)
        for title, cells in tables.items()
        if len(names[title]) > 1
    ]
