"""The history of a record: what it was made from, what each stage did with it, and what was made from it.

Of whole files only the columns of ids are read; of records that are shown, only their row groups. The id of a prompt is
a hash of its content, so unrelated data sets may have records with equal ids. A reference is therefore followed only
along the records that stages read from each other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from togi.core.codec import UNREADABLE
from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.record_streams import read_range
from togi.core.records import Record, Sample
from togi.core.settings import MAIN
from togi.stages.drops import DROPS_FILE

NEAR = 5  # similar ids that an error message lists
SHARED = 2  # digits that an id must share with an unknown one to be similar
TEXT = 160  # characters of a record
PASSED, CHANGED, MADE, DROPPED, LEFT, READ = "passed on", "changed", "made", "dropped", "not chosen", "read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stage with its folder. `files` are those of its outputs of records, by name; `reads` are the stages and outputs
    that it reads, `apart` those with which it only compares: its main output has nothing from them."""

    stage: str
    type: str
    folder: Path
    files: Mapping[str, Path]
    reads: Sequence[tuple[str, str]]
    apart: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A record in the stage that first wrote it: `stage` made it from `parents`. `dropped` is (stage, reason)."""

    id: str
    stage: str
    output: str
    parents: Sequence[str]
    dropped: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a stage did with a record. `what` lists changed fields, new scores, or the reason of a drop; `made` are the
    ids that the stage made from it."""

    stage: str
    type: str
    event: str
    what: str = ""
    made: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """The history of a record. `before` are its ancestors, `after` its descendants, the nearest first."""

    id: str
    kind: str
    text: str
    sources: Sequence[str]
    events: Sequence[Event]
    before: Sequence[Known]
    after: Sequence[Known]


@dataclass(slots=True)
class _File:
    """An output of records, with its ids and links to other records in memory."""

    place: Place
    output: str
    path: Path
    ids: pa.Array = field(init=False)
    links: list[tuple[pa.Array, pa.Array]] = field(init=False)
    """(rows, ids of other records in these rows), for each column with ids."""

    def __post_init__(self) -> None:
        try:
            file = pq.ParquetFile(self.path)
            names = file.schema_arrow.names
            columns = [each for each in ("parents", "answers") if each in names]
            if "chosen" not in names and "prompt" in names:  # the prompt of a pair is a conversation
                columns.append("prompt.id" if "completion" in names else "prompt")
            table = file.read(columns=["id", *columns])
        except (OSError, *UNREADABLE) as error:
            raise InputError(f"{self.path}: not a file of records, or a damaged one ({error})") from error
        self.ids, *columns = (table[name].combine_chunks() for name in table.column_names)
        self.links = list(map(_links, columns))

    @property
    def stage(self) -> str:
        """The stage that wrote the file."""
        return self.place.stage

    @property
    def key(self) -> tuple[str, str]:
        """The stage and the name of the output."""
        return self.place.stage, self.output

    def names(self, rows: Sequence[int]) -> list[str]:
        """The ids of the records in `rows`."""
        return self.ids.take(pa.array(rows, pa.int64())).to_pylist()

    def rows_of(self, ids: pa.Array) -> list[int]:
        """The rows of records with these ids."""
        return _call("indices_nonzero", _among(self.ids, ids)).to_pylist()

    def without(self, ids: pa.Array) -> pa.Array:
        """Those of `ids` that are not in this file and to which no record of it refers."""
        for known in (self.ids, *(named for _, named in self.links)):
            ids = ids.filter(_call("invert", _among(ids, known)))
        return ids

    def children_of(self, ids: pa.Array) -> list[int]:
        """The rows of records that refer to one of these ids."""
        found = [rows.filter(_among(named, ids)).to_pylist() for rows, named in self.links]
        return sorted(dict.fromkeys(chain(*found)))

    def parents_of(self, rows: Sequence[int]) -> dict[int, list[str]]:
        """The ids to which each of `rows` refers, without duplicates."""
        found: dict[int, dict[str, None]] = {row: {} for row in rows}
        for at, named in self.links:
            mask = _among(at, pa.array(rows, at.type))
            for row, name in zip(at.filter(mask).to_pylist(), named.filter(mask).to_pylist(), strict=True):
                found[row][name] = None
        return {row: list(names) for row, names in found.items()}

    def record(self, row: int) -> Record:
        return read_range(self.path, row, 1)[0]


def _call(name: str, values: pa.Array, options: pc.FunctionOptions | None = None) -> Any:
    """Calls an Arrow function on one array."""
    return pc.call_function(name, [values], options)


def _among(values: pa.Array, ids: pa.Array) -> pa.Array:
    """A mask of the values that are in `ids`."""
    return _call("is_in", values, pc.SetLookupOptions(value_set=ids))


def _beginning(ids: pa.Array, start: str) -> list[str]:
    """The ids that begin with `start`."""
    return ids.filter(_call("starts_with", ids, pc.MatchSubstringOptions(start))).to_pylist()


def _strings(parts: Iterable[Sequence[str]]) -> pa.Array:
    """All texts of several sequences as one array."""
    return pa.array([*chain(*parts)], pa.string())


def _links(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    if pa.types.is_list(column.type):
        return _call("list_parent_indices", column), _call("list_flatten", column)
    named = column.field("id") if pa.types.is_struct(column.type) else column
    return pa.array(range(len(named)), pa.int64()), named


class Tracer:
    """The records of a run; `places` are its stages in the order of the run."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = {place.stage: place for place in places}
        self._came: dict[tuple[str, str], dict[str, None]] = {}
        self._seen: dict[str, dict[str, None]] = {}
        for place in places:
            self._place(place)
        self.files = [
            _File(place, output, path) for place in places for output, path in place.files.items() if path.is_file()
        ]

    def _place(self, place: Place) -> None:
        """Notes the stages whose records a stage sees, and those whose records can be in, or behind, each output."""

        def of(reads: Sequence[tuple[str, str]]) -> dict[str, None]:
            return dict.fromkeys([place.stage, *chain(*(self._came.get(read, ()) for read in reads))])

        own, every = of(place.reads), of((*place.reads, *place.apart))
        self._seen[place.stage] = every
        self._came |= {(place.stage, output): own if output == MAIN else every for output in place.files}

    @cached_property
    def drops(self) -> dict[str, dict[str, str]]:
        """The reasons for drops, by stage and id."""
        found: dict[str, dict[str, str]] = {name: {} for name in self.places}
        for name, place in self.places.items():
            path = place.folder / DROPS_FILE
            for row in read_json(path) if path.exists() else ():
                known = found[name].get(row["id"])
                found[name][row["id"]] = f"{known}, {row['reason']}" if known else row["reason"]
        return found

    def find(self, given: str) -> str:
        """The id `given`, or the only one that begins with it. Raises InputError if there is none, or several."""
        found: dict[str, str] = {}
        for file in self.files:
            ids = file.ids
            for name in _beginning(ids, given):
                found.setdefault(name, file.place.stage)
        for stage, reasons in self.drops.items():
            found |= {name: stage for name in reasons if name.startswith(given) and name not in found}
        if given in found or len(found) == 1:
            return given if given in found else next(iter(found))
        if not found:
            raise InputError(f"no record of this run has the id {given!r}{self._near(given)}")
        some = ", ".join(f"{name} ({stage})" for name, stage in list(found.items())[:NEAR])
        more = f" and {len(found) - NEAR:,} more" if len(found) > NEAR else ""
        raise InputError(f"{len(found):,} records have ids that begin with {given!r}: {some}{more}; give more digits")

    def _near(self, given: str) -> str:
        pool: dict[str, str] = {}  # ids, truncated to the given number of digits
        for file in self.files:
            ids = file.ids
            pool |= {name[: len(given)]: name for name in _beginning(ids, given[:SHARED])}
        near = get_close_matches(given, pool, NEAR)
        if near:
            return f"; similar ids are {', '.join(pool[each] for each in near)}"
        return "; `togi show RECIPE STAGE` shows some ids" if self.files else ": no stage has written records yet"

    # --- one record ---------------------------------------------------------------------------------------------------

    def life(self, given: str) -> Life:
        """The history of a record by its id or the beginning of it. Raises InputError as `find` does."""
        name = self.find(given)
        wanted = pa.array([name], pa.string())
        at = [(file, rows[0]) for file in self.files if (rows := file.rows_of(wanted))]
        record = at[0][0].record(at[0][1]) if at else None
        stages = [file.stage for file, _ in at] or [stage for stage, why in self.drops.items() if name in why]
        return Life(
            id=name,
            kind="" if record is None else type(record).__name__.lower(),
            text="" if record is None else text_of(record),
            sources=[] if record is None else [f"{s.dataset} ({s.says})" for s in record.sources if s.says],
            events=list(self._events(name, at, stages)),
            before=self._before(at),
            after=self._after(name, stages),
        )

    def _events(self, name: str, at: Sequence[tuple[_File, int]], stages: Sequence[str]) -> Iterator[Event]:
        """What each stage did with the record, which is in `stages`, in the order of the run."""
        made = self._children(name, stages)
        held: dict[tuple[str, str], Record] = {}
        for place in self.places.values():
            here = [(file, row) for file, row in at if file.place is place]
            came = [held[read] for read in place.reads if read in held]
            for file, row in here:
                held[place.stage, file.output] = file.record(row)
            children = made.get(place.stage, [])
            if here:
                yield self._kept(place, came, held[place.stage, here[0][0].output], children)
            elif (gone := self._gone(place, name, bool(came), bool(children))) is not None:
                yield Event(stage=place.stage, type=place.type, event=gone[0], what=gone[1], made=children)

    def _gone(self, place: Place, name: str, came: bool, used: bool) -> tuple[str, str] | None:
        """The event of a stage whose outputs lack the record, and the reason; None for a stage that never read it."""
        reason = self.drops[place.stage].get(name)
        if reason is not None:
            return (READ, f"something made from it was dropped: {reason}") if used else (DROPPED, reason)
        if not (came or used):
            return None
        return (READ if used or not any(file.place is place for file in self.files) else LEFT), ""

    def _kept(self, place: Place, came: Sequence[Record], now: Record, children: Sequence[str]) -> Event:
        if not came:
            what = _origin(now)
            return Event(stage=place.stage, type=place.type, event=MADE, what=what, made=children)
        what = changes(came[0], now)
        return Event(stage=place.stage, type=place.type, event=CHANGED if what else PASSED, what=what, made=children)

    def _children(self, name: str, stages: Sequence[str]) -> dict[str, list[str]]:
        """The ids of records that refer to the record `name` of `stages`, by the stage that made them."""
        found: dict[str, list[str]] = {}
        known = {name: None}
        for file in self.files:
            for child in file.names(file.children_of(self._behind(file, {stage: [name] for stage in stages}))):
                if child not in known:
                    known[child] = None
                    found.setdefault(file.stage, []).append(child)
        return found

    def _behind(self, file: _File, ids: Mapping[str, Sequence[str]]) -> pa.Array:
        """Of `ids` by stage, those of stages whose records are in a file or behind its records."""
        came = self._came[file.key]
        return _strings(own for stage, own in ids.items() if stage in came)

    # --- before and after ---------------------------------------------------------------------------------------------

    def _before(self, at: Sequence[tuple[_File, int]]) -> list[Known]:
        """The ancestors of the record in these rows: each is looked for only behind the file that refers to it."""
        found: dict[str, Known | None] = {}
        reached: dict[tuple[str, str], dict[str, None]] = {file.key: {} for file in self.files}
        wanted = {file.key: file.parents_of([row])[row] for file, row in at}
        while wanted:
            found |= {name: found.get(name) for ids in wanted.values() for name in ids}
            above: dict[tuple[str, str], list[str]] = {}
            for file in self.files:
                ids = _strings(own for by, own in wanted.items() if file.stage in self._came[by])
                for known in self._new(file, file.rows_of(ids), reached[file.key]):
                    found[known.id] = found[known.id] or known
                    above.setdefault(file.key, []).extend(known.parents)
            wanted = above
        return [known for known in found.values() if known is not None]

    def _after(self, name: str, stages: Sequence[str]) -> list[Known]:
        """The descendants of a record that is in `stages`: each is looked for only where those records can be."""
        found: dict[str, Known] = {}
        reached: dict[tuple[str, str], dict[str, None]] = {file.key: {name: None} for file in self.files}
        last: dict[str, list[str]] = {stage: [name] for stage in stages}
        while last:
            below: dict[str, list[str]] = {}
            for file in self.files:
                for known in self._new(file, file.children_of(self._behind(file, last)), reached[file.key]):
                    found.setdefault(known.id, known)
                    below.setdefault(file.stage, []).append(known.id)
            last = below
        return [*found.values()]

    def _new(self, file: _File, rows: Sequence[int], reached: dict[str, None]) -> Iterator[Known]:
        """The records in `rows` that are not in `reached`, which then has them."""
        names = dict(zip(rows, file.names(rows), strict=True))
        new = [row for row, name in names.items() if name not in reached]
        reached |= dict.fromkeys(names.values())
        parents, dropped = file.parents_of(new), self._dropped([names[row] for row in new], file.stage)
        for row in new:
            why = dropped.get(names[row])
            yield Known(id=names[row], stage=file.stage, output=file.output, parents=parents[row], dropped=why)

    def _dropped(self, names: Sequence[str], stage: str) -> dict[str, tuple[str, str]]:
        """The first stage behind `stage` that dropped each of its records, and the reason. A stage that kept the
        record, or made something from it, has dropped only something else that was made from it."""
        found: dict[str, tuple[str, str]] = {}
        seeing = {by: why for by, why in self.drops.items() if stage in self._seen[by]}
        for by, why in seeing.items():
            lost = pa.array([name for name in names if name in why and name not in found], pa.string())
            for file in self.files if len(lost) else ():
                lost = file.without(lost) if file.stage == by else lost
            found |= {name: (by, why[name]) for name in lost.to_pylist()}
        return found

    def text(self, known: Known) -> str:
        """The beginning of a record's text."""
        file = next(f for f in self.files if (f.place.stage, f.output) == (known.stage, known.output))
        return text_of(file.record(file.rows_of(pa.array([known.id], pa.string()))[0]))


def text_of(record: Record) -> str:
    """The beginning of a record's text on one line."""
    text = " ".join(getattr(record, "text", "").split())
    return text if len(text) <= TEXT else f"{text[:TEXT]} …"


def _origin(record: Record) -> str:
    if record.source is not None and not record.parents:
        return f"read from {record.source.dataset}"
    model = f"by {record.model}, " if isinstance(record, Sample) and record.model else ""
    return f"{model}from {len(record.parents):,} record{'' if len(record.parents) == 1 else 's'}"


def changes(before: Record, now: Record) -> str:
    """The differences of a record from an earlier stage: changed fields and new scores. Empty if there are none."""
    found = [
        each.name
        for each in fields(now)
        if each.name not in ("inherited", "scores") and getattr(before, each.name, None) != getattr(now, each.name)
    ]
    if isinstance(now, Sample):
        old = before.scores if isinstance(before, Sample) else {}
        found += [f"{name} {value}" for name, value in now.scores.items() if old.get(name) != value or name not in old]
    return ", ".join(found)
