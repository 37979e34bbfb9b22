"""Converts external rows to records, each with its source, its licence and the columns that togi does not read."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from togi.core.errors import InputError, RecipeError
from togi.core.records import KINDS, Completion, Drop, Message, Prompt, Provenance, Record
from togi.core.seeds import content_id, digest
from togi.data.hub import download
from togi.data.labelled import Labelled, pairs_of
from togi.data.presets import PRESETS, preset_row, spread_row
from togi.data.roles import meant, misspelt, wrong_roles
from togi.data.rows import Row, find_files, read_rows
from togi.data.shapes import CONVERSATIONS, NEEDS, SPOKEN, Shape, fitting, parse_row
from togi.data.values import BadRow, LeftOut, absent, blank, plain

STAGE = "import"
DROPPING = "To drop and count such rows, set on_bad_row: drop (in a command without a recipe: --on-bad-row drop)"
OF_THE_SET = ("wrong_shape", "missing_column", "ambiguous_columns")  # in the first row: all rows probably have it


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """What to read: a file or folder (`path`), or a data set on the hub ("owner/name", or "owner/name/folder").

    `preset` names a public set with known columns (`data.presets`); without path and hub it is read from the hub.
    `columns` maps togi's column names to the file's. `where` maps columns, of the file or of the preset, to the value
    or list of values that a row must have. `split` selects among files whose names contain their split. Reading
    stops after `limit` rows. `on_bad_row` says what to do with a row that does not fit. `takers` lists the stages that
    read each kind of record, for the message about rows of another kind.
    """

    path: Path | str | None = None
    hub: str | None = None
    preset: str | None = None
    revision: str = "main"
    split: str = "train"
    where: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    terms: str | None = None
    inherit: bool = False
    on_bad_row: Literal["error", "drop"] = "error"
    limit: int | None = None
    takers: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Imported:
    """The records of a data set in row order, and the drops of rows that did not fit; `dropped` counts these by reason.

    `aside` lists the non-empty columns that are not read, only kept in `extra`. `notes` are sentences for the user
    about the import.
    """

    records: Sequence[Record] = ()
    drops: Sequence[Drop] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_records(spec: DataSpec, kind: str) -> Imported:
    """Like `pour_records`, but keeps all records in memory."""
    records: list[Record] = []
    drops: list[Drop] = []
    return replace(pour_records(spec, kind, records.append, drops.append), records=records, drops=drops)


def pour_records(
    spec: DataSpec, kind: str, sink: Callable[[Record], None], dropped: Callable[[Drop], None]
) -> Imported:
    """Reads rows and passes each as a record of `kind` (prompts, chats, pairs, documents, samples) to `sink`, or the
    drop of a row that does not fit to `dropped`. The result contains neither records nor drops.

    Raises RecipeError for a bad spec. Raises InputError with file, line and column for a row that does not fit (with
    `on_bad_row: drop` the row is dropped under its reason), and if there are no rows or none fits.
    """
    if kind not in NEEDS:
        close = get_close_matches(kind, NEEDS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"rows cannot become {kind!r}; allowed are {', '.join(NEEDS)}{hint}")
    folder, source = _locate(spec)
    files = find_files(folder, spec.split, texts=kind == "documents")
    border = _Border(spec, kind, source, sink, dropped)
    for row in _rows(spec, files):
        if border.full:
            break
        border.take_all(row)
    return border.finish(files)


def place_of(spec: DataSpec, kind: str, record: str) -> str:
    """The place (file:line, or file and row) of the row that became the record with this id; empty if no row did, and
    for pairs of labelled rows. Raises as `pour_records`."""
    folder, source = _locate(spec)
    found: list[str] = []
    border = _Border(spec, kind, source, lambda made: found.append(made.id), lambda drop: None)
    for row in _rows(spec, find_files(folder, spec.split, texts=kind == "documents")):
        if border.full:
            break
        border.take_all(row)
        if record in found:
            return row.where
        found.clear()
    return ""


def _rows(spec: DataSpec, files: Sequence[Path]) -> Iterable[Row]:
    rows: Iterable[Row] = chain.from_iterable(map(read_rows, files))
    gather = PRESETS[spec.preset].gather if spec.preset else None
    return rows if gather is None else gather(rows)


def _locate(spec: DataSpec) -> tuple[Path, Provenance]:
    hub = spec.hub or (PRESETS[spec.preset].hub if spec.preset and spec.path is None else None)
    if (spec.path is None) == (hub is None):
        raise RecipeError("data: set either `path` or `hub`, or the `preset` of a set on the hub")
    said: dict[str, Any] = {"licence": spec.licence, "terms": spec.terms, "inherit": spec.inherit}
    if spec.path is not None:
        path = Path(spec.path)
        return path, Provenance(dataset=path.name, **said)
    assert hub is not None
    folder, revision = download(hub, spec.revision)
    return folder, Provenance(dataset=hub, revision=revision, **said)


@dataclass(slots=True)
class _Border:
    """Converts rows to records. `seen` counts equal rows by a hash of their content and keeps nothing else of them;
    `labelled` collects labelled rows until the end, when pairs are made."""

    spec: DataSpec
    kind: str
    source: Provenance
    sink: Callable[[Record], None]
    dropped: Callable[[Drop], None]
    made: int = 0
    seen: dict[bytes, int] = field(default_factory=dict)
    labelled: list[Labelled] = field(default_factory=list)
    aside: dict[str, None] = field(default_factory=dict)
    roles: Counter[str] = field(default_factory=Counter)
    imported: Imported = field(default_factory=Imported)

    @property
    def full(self) -> bool:
        """Whether the limit of rows is reached."""
        return self.spec.limit is not None and self.made + len(self.labelled) >= self.spec.limit

    def take_all(self, row: Row) -> None:
        """Reads a row of a file, which may hold several rows. Raises InputError for a row that does not fit, unless
        `on_bad_row` is drop."""
        if self.spec.preset is None or PRESETS[self.spec.preset].spread is None:
            return self._take(row.where, lambda: self._read(row))
        self._take(row.where, lambda: self._spread(row))

    def _spread(self, row: Row) -> None:
        if isinstance(row.values, BadRow):
            raise row.values
        for number, values in enumerate(spread_row(self.spec.preset, row.values, self.kind), 1):
            if self.full:
                return
            one = Row(f"{row.where}, part {number}", dict(values))
            self._take(one.where, lambda one=one: self._read(one))

    def _take(self, where: str, read: Callable[[], None]) -> None:
        try:
            read()
        except LeftOut as left:
            self._drop(where, left.reason)
        except BadRow as bad:
            if self.spec.on_bad_row == "error":
                whole = bad.reason in OF_THE_SET and not self.made
                hint = "" if whole else f". {DROPPING}"
                raise InputError(f"{where}: {bad}{hint}") from None
            self._drop(where, bad.reason)

    def finish(self, files: Sequence[Path]) -> Imported:
        """Makes pairs of labelled rows. Raises InputError if no row became a record."""
        pairs, alone = pairs_of(self.labelled)
        for pair in pairs:
            self._add(pair.shape, pair.extra)
        for row in alone:
            self._drop(row.where, "no_partner")
        if self.labelled:
            rest = f"; for {len(alone)} rows no answer to the same prompt has the other label" if alone else ""
            self.imported.notes.append(f"{len(self.labelled)} labelled rows made {len(pairs)} pairs{rest}")
        _refuse_empty(files, self.made, self.imported)
        for role, count in self.roles.items():
            self.imported.notes.append(f"turns with the unknown role {role!r}: {count}{meant(role)}")
        self.imported.aside.extend(self.aside)
        if self.aside:
            self.imported.notes.append(f"columns not read: {', '.join(self.aside)} (kept in extra)")
        return self.imported

    def _read(self, row: Row) -> None:
        if isinstance(row.values, BadRow):
            raise row.values
        if self.spec.preset is None:
            values = _renamed(row.values, self.spec.columns)
        else:
            values = preset_row(self.spec.preset, row.values, self.kind)
        _hold(self.spec.where, {**row.values, **values})
        shape = parse_row(values, self.kind, list(self.spec.columns))
        if shape is None:
            raise _misfit(self.spec, self.kind, values)
        extra = {name: plain(value) for name, value in values.items() if name not in shape.columns}
        if shape.label is None:
            self._add(shape, extra)
        else:
            prompt = digest([_said(m) for m in shape.prompt])
            self.labelled.append(Labelled(row.where, prompt, shape, extra))

    def _add(self, shape: Shape, extra: Mapping[str, Any]) -> None:
        content = _content(shape, self.kind)
        key = bytes.fromhex(digest([self.kind, content])[:32])
        ordinal = self.seen.get(key, 0)
        name = content_id([self.kind, content], ordinal)
        self.sink(_record(self.kind, shape, name, self.source, extra))
        self.made += 1
        self.roles.update(misspelt((*shape.prompt, *(shape.answer or ()), *(shape.chosen or ()))))
        self.seen[key] = ordinal + 1
        self.aside.update((name, None) for name, value in extra.items() if not blank(value))

    def _drop(self, where: str, reason: str) -> None:
        self.imported.dropped[reason] += 1
        self.dropped(Drop(id=where, stage=STAGE, reason=reason))


def _hold(where: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises LeftOut for a row whose values differ from those in `where`, BadRow for a row without one of the
    columns."""
    for column, wanted in where.items():
        if column not in values:
            raise BadRow("missing_column", f"no column {column!r} (where: {column}); the row has {', '.join(values)}")
        allowed = wanted if isinstance(wanted, list | tuple) else [wanted]
        if not any(values[column] == each or str(values[column]) == str(each) for each in allowed):
            raise LeftOut("filtered")


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under togi's column names; a column of the file with such a name is replaced."""
    for ours, theirs in columns.items():
        if theirs not in values:
            raise BadRow(
                "missing_column", f"no column {theirs!r} (columns: {ours}: {theirs}); the row has {', '.join(values)}"
            )
    taken = list(columns.values())
    named = {ours: values[theirs] for ours, theirs in columns.items()}
    return named | {name: value for name, value in values.items() if name not in taken and name not in named}


def _misfit(spec: DataSpec, kind: str, values: Mapping[str, Any]) -> BadRow:
    """The error for a row that lacks the columns of its kind."""
    fits = fitting(values, list(spec.columns))
    empty = [name for name, value in values.items() if absent(value) and name in SPOKEN]
    filled = {**values, **dict.fromkeys(empty, "text")}
    if empty and (not fits or kind in fitting(filled, list(spec.columns))):
        return BadRow("empty_text", f"column {empty[0]!r} is empty")
    columns, roles = ", ".join(values) or "(none)", wrong_roles(values, CONVERSATIONS, kind)
    found = f"the row has the columns {columns}, which do not make {kind}{roles}; it needs {NEEDS[kind]}"
    if fits:
        takers = spec.takers
        others = [f"{other} (for {', '.join(takers[other])})" if takers.get(other) else other for other in fits]
        return BadRow("wrong_shape", f"{found}. Such rows would fit {' or '.join(others)}")
    known = next((name for name in PRESETS if spec.preset is None and (spec.hub or "").startswith(name)), None)
    hint = f"`preset: {known}` reads this set, or map" if known else "Map"
    return BadRow(
        "wrong_shape", f"{found}. {hint} its columns with `columns: {{our name: the file's name}}` in a recipe"
    )


def _content(shape: Shape, kind: str) -> Any:
    """The content that determines a record's id, without its origin."""
    parts = {
        "prompts": (shape.prompt, shape.reference),
        "chats": (shape.prompt, shape.answer),
        "pairs": (shape.prompt, shape.chosen, shape.rejected, shape.margin),
        "documents": (shape.text,),
        "samples": (shape.prompt, shape.reference, shape.answer, shape.model),
    }[kind]
    return [[_said(m) for m in part] if isinstance(part, tuple) else part for part in parts]


def _said(message: Message) -> dict[str, Any]:
    """The part of a turn that enters the record's id; a turn with only role and text has one form."""
    said = {"role": message.role, "content": message.content, "train": message.train}
    return said | ({"extra": dict(message.extra)} if message.extra else {})


def _record(kind: str, shape: Shape, name: str, source: Provenance, extra: Mapping[str, Any]) -> Record:
    shared: dict[str, Any] = {"id": name, "source": source, "extra": extra}
    return KINDS[kind](**shared, **FIELDS[kind](shape))


FIELDS: dict[str, Callable[[Shape], dict[str, Any]]] = {
    "prompts": lambda shape: {"messages": shape.prompt, "answer": shape.reference},
    "chats": lambda shape: {"messages": shape.prompt + (shape.answer or ())},
    "pairs": lambda shape: {
        "prompt": shape.prompt,
        "chosen": shape.chosen,
        "rejected": shape.rejected,
        "margin": shape.margin,
    },
    "documents": lambda shape: {"text": shape.text},
    "samples": lambda shape: {
        "prompt": _asked(shape),
        "completion": Completion(text=_answer_text(shape), stop="terminator"),
        "scores": shape.scores,
        "model": shape.model,
    },
}
"""The fields of a record of each kind that rows can become."""


def _answer_text(shape: Shape) -> str:
    """The answer of a sample; rows without one were rejected before."""
    assert shape.answer
    return shape.answer[0].content


def _asked(shape: Shape) -> Prompt:
    """The prompt of a sample, with the same id as if it were read as a prompt."""
    name = content_id(["prompts", _content(shape, "prompts")])
    return Prompt(id=name, messages=shape.prompt, answer=shape.reference)


def _refuse_empty(files: Sequence[Path], made: int, imported: Imported) -> None:
    if made:
        return
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if not imported.dropped:
        raise InputError(f"{where}: the data set is empty: it has no rows")
    counts = ", ".join(f"{reason} {count}" for reason, count in imported.dropped.items())
    raise InputError(
        f"{where}: none of the {imported.dropped.total()} rows fits ({counts}); to see why, set on_bad_row: error "
        "(in a command without a recipe: --on-bad-row error)"
    )
