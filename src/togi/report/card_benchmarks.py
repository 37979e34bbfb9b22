"""The benchmarks of a model on its card: a table for each, with the other models that it measured beside it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from togi.report.card_language import Language
from togi.report.card_parts import cell, table
from togi.report.view import BenchmarkView, Cells, CellView, ColumnView, PartView, RunView, StageView

Row = tuple[str, Mapping[str, CellView], bool]
"""A row of a table: its name, its cells, and whether they are differences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benched:
    """A benchmark that measured the model `model` in the stage `stage`."""

    model: str
    stage: StageView
    view: BenchmarkView

    @property
    def leaks(self) -> int | None:
        """The number of its questions that the model was trained on; None if nothing is known of its training."""
        return self.view.leaks.get(self.model)

    @property
    def decontaminated(self) -> str:
        """Which of the model's training data was compared with the questions; empty if none is known."""
        return self.view.decontaminated.get(self.model, "")

    def figures(self) -> Iterator[tuple[str, CellView]]:
        """Every defined number of the model with its name; for a number in a part, the name starts with its title."""
        own = PartView(title="", columns=self.view.columns, cells=self.view.cells)
        for part in (own, *self.view.parts):
            for column in part.columns:
                found = part.cells.get(self.model, {}).get(column.name)
                if found is not None and found.value is not None:
                    yield f"{part.title}: {column.name}" if part.title else column.name, found


def benched(run: RunView, stage: str) -> list[Benched]:
    """The benchmarks with the model of `stage` among their subjects."""
    return [
        Benched(model=stage, stage=each, view=view)
        for each in run.stages
        if f"${stage}" in (each.settings.get("models") or ())
        for view in each.benchmarks
        if stage in view.cells
    ]


def tables(found: Benched, language: Language) -> Iterator[str]:
    """The part of a card on one benchmark: its table, those of its parts, what is known of leaks, and notes."""
    words, view = language.words, found.view
    yield f"### {view.benchmark}\n"
    level = language.level(view.level)
    yield words["benched"].format(stage=found.stage.name, count=language.count(view.rows), level=level) + "\n"
    yield _board(view.columns, _rows(found, view.cells, language, view.differences), language)
    yield words["trained_on"].format(counts=_leaks(view, found.model, language)) + "\n"
    if view.dropped:
        dropped = ", ".join(f"`{reason}` {language.count(count)}" for reason, count in view.dropped.items())
        yield words["unused"].format(counts=dropped) + "\n"
    if view.decontaminated:
        yield words["against"] + "\n"
        yield "".join(f"- {cell(name)}: {language.note(cell(said))}\n" for name, said in view.decontaminated.items())
    for part in _parts(found):
        yield f"#### {language.title(part.title)}\n"
        yield _board(part.columns, _rows(found, part.cells, language), language)
    yield from _notes(found, language)


def _parts(found: Benched) -> list[PartView]:
    """The parts with figures of the model."""
    return [part for part in found.view.parts if found.model in part.cells]


def _rows(found: Benched, cells: Cells, language: Language, differences: Cells | None = None) -> list[Row]:
    """The model, its paired difference from the baseline, and the other models."""
    model, base = found.model, found.view.baseline
    change = (differences or {}).get(model)
    paired = [] if change is None else [(language.words["minus"].format(model=model, base=base), change, True)]
    others = [(name, row, False) for name, row in cells.items() if name != model]
    return [(f"**{model}**", cells[model], False), *paired, *others]


def _board(columns: Sequence[ColumnView], rows: Sequence[Row], language: Language) -> str:
    """A table without the columns that no row has. The longer side, figures or models, becomes the rows."""
    shown = _shown(columns, [row for _, row, _ in rows])
    titles, names = [language.column(column) for column in shown], [name for name, _, _ in rows]
    texts = [
        ["" if (one := row.get(column.name)) is None else language.cell(one, column, signed=signed) for column in shown]
        for _, row, signed in rows
    ]
    if len(names) > len(titles):
        return table([language.words["model"], *titles], [[name, *row] for name, row in zip(names, texts, strict=True)])
    down = zip(titles, zip(*texts, strict=True), strict=True)
    return table([language.words["metric"], *names], [[title, *row] for title, row in down])


def _shown(columns: Sequence[ColumnView], rows: Sequence[Mapping[str, CellView]]) -> list[ColumnView]:
    """The columns that a row has."""
    return [column for column in columns if any(_is_known(row.get(column.name)) for row in rows)]


def _is_known(one: CellView | None) -> bool:
    return one is not None and (one.value is not None or one.n > 0)


def _leaks(view: BenchmarkView, model: str, language: Language) -> str:
    """The count of each measured model, then of the judge: "policy 3, base unknown"."""
    known = dict.fromkeys((model, *view.cells, *view.leaks))
    counts = {name: view.leaks.get(name) for name in known}
    return ", ".join(
        f"{name} {language.words['unknown'] if count is None else language.count(count)}"
        for name, count in counts.items()
    )


def _notes(found: Benched, language: Language) -> Iterator[str]:
    """The meaning of the figures that have tables, and remarks on models. They are in English."""
    view = found.view
    columns = _shown(view.columns, list(view.cells.values()))
    notes = [f"{language.named(column.name)}: {column.note}" for column in columns if column.note]
    notes += [f"{language.title(part.title)}: {part.note}" for part in _parts(found) if part.note]
    if told := [*notes, *view.notes]:
        yield language.words["notes"] + "\n"
        yield "".join(f"- {cell(note)}\n" for note in told)
