"""The context of a running stage: its folder, its inputs, its messages, and units of work.

Work is divided into *units*, which settings and data alone determine; a finished unit is written once and never
repeated, an unfinished one is repeated as a whole.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from togi.client.endpoint import Endpoint
from togi.core.aside import records_aside
from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, Interrupted, StageError, TogiError
from togi.core.files import append_line, cut_torn_line, read_json, read_lines, read_object, write_json
from togi.core.hashing import file_hash
from togi.core.ranks import ALONE, Ranks
from togi.core.record_streams import (
    RecordWriter,
    count_records,
    file_sources,
    pick_records,
    read_batches,
    record_writer,
)
from togi.core.records import KINDS, Drop, Provenance, Record, joined
from togi.core.seeds import digest
from togi.core.settings import MAIN, Ref
from togi.core.sources import ModelSource
from togi.stages.accounts import nothing_left, sources_in, unaccounted
from togi.stages.base import output_path
from togi.stages.drops import DropLog
from togi.stages.shards import SHARD_ROWS, SerialShards, ShardExecutor
from togi.stages.sources import Descent, model_sources, wrote


@dataclass(frozen=True, slots=True)
class Resolved:
    """The target of a reference: a model from outside, or the folder of a finished stage, whose model runs on `device`
    if the recipe sets it. A model on a server has an `endpoint`; without URLs it is the service of the same name."""

    kind: str
    source: ModelSource | None = None
    folder: Path | None = None
    device: str = ""
    endpoint: Endpoint | None = None


@dataclass(slots=True)
class Control:
    """The connection between a stage and its runner: events go out, a request to stop comes in. `give_up` ends the
    process at once with an error, from any thread."""

    send: Callable[[dict[str, Any]], None]
    stop: bool = False
    give_up: Callable[[TogiError], None] = lambda error: None


@dataclass(slots=True)
class Context:
    """A running stage's folder, seed, inputs and messages. With several `ranks`, only rank 0 writes into the folder and
    sends messages; all ranks call everything here in the same order. `fits` is the length in tokens of the longest
    example that fits into memory, if requested. `takers` are the stage types that accept each kind of records.
    `reasons` are all reasons for which the stage drops records; None if undeclared. `services` are the URLs of the
    services that it needs, by name. `apart` are references to records that do not become part of the output, such as
    those for validation. `contexts` are the context lengths in tokens of models on servers, by name, as far as known.
    `adds_up`: the records that come in are those that go out or are dropped. `run` is the id of the run, to which
    budgets apply; `spent` returns its spending on servers so far, in words. `threads` are those of each process."""

    name: str
    folder: Path
    cache: Path
    seed: int
    inputs: dict[str, Resolved]
    control: Control
    compute: str = "auto"
    threads: int = 1
    ranks: Ranks = ALONE
    recipe: str = ""
    fingerprint: str = ""
    track: tuple[str, ...] = ()
    fits: int | None = None
    takers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reasons: tuple[str, ...] | None = None
    shards: ShardExecutor = field(default_factory=SerialShards)
    services: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    spent: Callable[[], str] = lambda: ""
    clients: dict[str, Any] = field(default_factory=dict)  # clients of servers, by the name of the model
    leaving: ExitStack = field(default_factory=ExitStack)  # resources that are closed when the stage ends
    counts: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    data: dict[Provenance, None] = field(default_factory=dict)  # sources of the records read, in order
    apart: tuple[str, ...] = ()
    contexts: Mapping[str, int] = field(default_factory=dict)
    adds_up: bool = False
    written: dict[str, Counter[Provenance]] = field(default_factory=dict)  # by output: the number of records from each
    drops: DropLog = field(init=False)
    _descent: Descent | None = None
    _raised: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.drops = DropLog(self.name, self.folder if self.ranks.first else None)

    # --- inputs -----------------------------------------------------------------------------------------------

    def records(self, ref: Ref) -> list[Any]:
        """The records of `ref`, all in memory. Raises InputError if there are none."""
        _, records = read_records(self.records_file(ref))
        if not records:
            raise self._no_records(ref)
        self.note(records, ref)
        return records

    def batches(self, ref: Ref, rows: int = SHARD_ROWS, *, noted: bool = True) -> Iterator[list[Any]]:
        """The records of `ref`, in order, `rows` at a time. If not `noted`, the caller records their sources. Raises
        InputError if there are none."""
        self.records_count(ref)
        return self._batches(ref, rows, noted)

    def _batches(self, ref: Ref, rows: int, noted: bool) -> Iterator[list[Any]]:
        for batch in read_batches(self.records_file(ref), rows):
            if noted:
                self.note(batch, ref)
            yield batch

    def contents(self, ref: Ref) -> str | None:
        """A hash of the records of `ref`; None if they are not in a file."""
        return file_hash(self.records_file(ref))

    def note_sources(self, ref: Ref) -> None:
        """Records the sources of a whole output, for a model that is made from it. Reads only the sources."""
        if ref not in self.apart:
            self.data |= dict.fromkeys(chain.from_iterable(file_sources(self.records_file(ref))))

    def picked(self, ref: Ref, rows: np.ndarray) -> Iterator[list[Any]]:
        """The records of `ref` at the indices `rows`, in that order, a few thousand at a time."""
        for batch in pick_records(self.records_file(ref), rows, SHARD_ROWS):
            self.note(batch, ref)
            yield batch

    def aside(self, ref: Ref) -> Sequence[Any]:
        """The records of `ref`, for random access by index, read from disk on demand: each takes eight bytes of memory.
        Raises InputError if there are none."""
        return records_aside(self.batches(ref), self.folder)

    def records_file(self, ref: Ref) -> Path:
        """The file with the records of `ref`."""
        target = self.inputs[ref]
        assert target.folder is not None, f"{ref} is not a stage"
        return target.folder / output_path(target.kind, ref.output)

    def output_mark(self, ref: Ref) -> str:
        """The identity of the output that `ref` refers to: the folder of its stage, and its own name."""
        target = self.inputs[ref]
        assert target.folder is not None, f"{ref} is not a stage"
        return f"{target.folder.name}/{ref.output}"

    def records_count(self, ref: Ref) -> int:
        """The number of records of `ref`, without reading them. Raises InputError if there are none."""
        count = count_records(self.records_file(ref))
        if not count:
            raise self._no_records(ref)
        return count

    def _no_records(self, ref: Ref) -> InputError:
        return InputError(f"stage {self.name}: {ref} has no records; see its drops with `togi show RECIPE {ref.name}`")

    def note(self, records: Sequence[Record], ref: Ref | None = None) -> None:
        """Records the sources of records that the stage uses. `records` and `batches` do this themselves, with the
        reference: records of an `apart` reference do not become part of the output."""
        if ref not in self.apart:
            self.data |= dict.fromkeys(source for record in records for source in record.sources)
            self._descended().note(records)

    def sourced(self, records: Sequence[Record]) -> list[Record]:
        """Adds to each record that the stage writes the sources of what it was made from. `write` and `writer` do this
        themselves."""
        return self._descended().given(records)

    def lineage(self) -> tuple[Provenance, ...]:
        """The sources of a model that is trained here: those of the records read, and of the models."""
        models = [*self._models("model").values(), *self._models("scorer").values()]
        return joined([*self.data, *chain(*models)])

    def _descended(self) -> Descent:
        if self._descent is None:
            writers = {name: wrote(found) for name, found in self._models("model").items()}
            graders = [each for found in self._models("scorer").values() for each in found if each.inherit]
            self._descent = Descent(writers, tuple(graders), self._unread)
        return self._descent

    def _models(self, kind: str) -> dict[str, tuple[Provenance, ...]]:
        """The sources of all models of one kind among the inputs, by name."""
        refs = [Ref(ref) for ref, target in self.inputs.items() if target.kind == kind]
        return {ref.name: model_sources(self.model(ref)) for ref in refs}

    def _unread(self) -> list[tuple[Provenance, ...]]:
        """The sets of sources of all records that the stage may have used."""
        refs = [Ref(ref) for ref, target in self.inputs.items() if target.kind in KINDS and ref not in self.apart]
        files = [path for ref in refs if (path := self.records_file(ref)).is_file()]
        return list(dict.fromkeys(chain.from_iterable(map(file_sources, files))))

    def model(self, ref: Ref) -> ModelSource:
        """The source of the weights of `ref`."""
        target = self.inputs[ref]
        if target.source is not None:
            return target.source
        assert target.folder is not None
        folder = target.folder / output_path(target.kind, ref.output)
        return ModelSource(kind="path", name=str(folder), device=target.device)

    def endpoint(self, ref: Ref) -> Endpoint | None:
        """The server of the model `ref`; None for a model that is computed here."""
        found = self.inputs[ref].endpoint
        if found is None or found.urls:
            return found
        return replace(found, urls=(f"{self.services[found.name]}/v1",))

    # --- messages ---------------------------------------------------------------------------------------------

    def log(self, message: str) -> None:
        """Logs one line for the user."""
        self.control.send({"event": "log", "stage": self.name, "message": message})

    def progress(self, done: int, total: int, what: str, note: str = "") -> None:
        """Reports progress: `done` of `total` in units of `what`."""
        note = ", ".join(filter(None, (note, self.spent())))
        event = {"event": "progress", "stage": self.name, "done": done, "total": total, "what": what, "note": note}
        self.control.send(event)

    def alarm(self, name: str, message: str, **fields: Any) -> None:
        """Raises an alarm for the user, once: in the log, in the report, and in the stage's folder."""
        if (name, message) in self._raised:  # the trainings of a sweep read the same data
            return
        self._raised.add((name, message))
        alarm = {"name": name, "message": message, **fields}
        if self.ranks.first:
            append_line(self.folder / "alarms.jsonl", alarm)
        self.control.send({"event": "alarm", "stage": self.name, **alarm})

    def check_stop(self) -> None:
        """Raises Interrupted if someone asked to stop. Call it only when all finished work is saved."""
        if self.ranks.any(self.control.stop):
            raise Interrupted(f"stage {self.name}: stopped; everything finished is saved")

    # --- work -------------------------------------------------------------------------------------------------

    def units(self, count: int, make: Callable[[int], Any], name: str = "batch", what: str = "") -> list[Any]:
        """`stream_units` with all values in memory."""
        return list(self.stream_units(count, make, name, what=what))

    def stream_units(
        self, count: int, make: Callable[[int], Any], name: str = "batch", *, told: bool = True, what: str = ""
    ) -> Iterator[Any]:
        """Does each of the units 0..count-1 once, even across kills, and yields their values (JSON-like) in order.

        `name` distinguishes the phases of a stage. With `told`, each unit is a step of the progress, which calls the
        units `what` (default: `name`); a stage that counts its progress differently reports it itself. A stage that has
        enough values may stop reading.

        A unit is committed by renaming its file, then by a line in the journal with the file's hash; a unit whose line
        is missing or damaged, or whose file does not match it, is done again.
        """
        committed = self.ranks.on_first_rank(self._committed)
        for number in range(count):
            value = self._unit(f"{name}-{number:06d}", committed, lambda n=number: make(n), count)
            if told:
                self.progress(number + 1, count, what or name)
            yield value

    def missing_units(self, count: int, name: str) -> list[int]:
        """The units among 0..count-1 that are left to do."""
        committed = self._committed()
        return [number for number in range(count) if not self._is_whole(f"{name}-{number:06d}", committed)]

    def _committed(self) -> dict[str, str]:
        """The units in the journal, with the hashes of their files."""
        journal = self.folder / "journal.jsonl"
        cut_torn_line(journal)
        lines = [line for line in read_lines(journal) if "unit" in line]
        whole = [line for line in lines if line.get("line") == _line_hash(line)]
        if len(whole) < len(lines):
            self.log(f"{journal}: {len(lines) - len(whole)} damaged lines are skipped; their work is done again")
        return {line["unit"]: line["sha256"] for line in whole}

    def _is_whole(self, unit: str, committed: dict[str, str]) -> bool:
        path = self._unit_file(unit)
        return unit in committed and path.exists() and file_hash(path) == committed[unit]

    def _unit_file(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit}.json"

    def _unit(self, unit: str, committed: dict[str, str], make: Callable[[], Any], count: int) -> Any:
        """The value of one unit, which is done first if necessary."""
        path = self._unit_file(unit)

        def commit(value: Any) -> None:
            write_json(path, value)
            line = {"unit": unit, "of": count, "sha256": file_hash(path)}
            if committed.get(unit) != line["sha256"]:
                append_line(self.folder / "journal.jsonl", {**line, "line": _line_hash(line)})

        if not self.ranks.on_first_rank(lambda: self._is_whole(unit, committed)):
            self.check_stop()
            value = make()
            self.ranks.on_first_rank(lambda: commit(value))
        return self.ranks.on_first_rank(lambda: read_json(path))

    def count_in(self, count: int) -> None:
        """Adds to the number of records that came into the stage."""
        self.counts["in"] = self.counts.get("in", 0) + count

    def drop(self, record: Record | str, reason: str) -> None:
        """Drops a record, given as a record or an id; for a record that was never made, the id of its parent.

        Raises ValueError for a reason that the stage does not declare.
        """
        if self.reasons is not None and reason not in self.reasons:
            raise ValueError(
                f"stage {self.name}: {reason!r} is not a declared reason: {', '.join(self.reasons) or 'none'}"
            )
        self.drops.add(record if isinstance(record, str) else record.id, reason)

    def drop_all(self, drops: Iterable[Drop]) -> None:
        """Records the drops that a function of `togi.data` found."""
        for each in drops:
            self.drop(each.id, each.reason)

    def drop_counts(self) -> dict[str, int]:
        """The number of dropped records by reason, in the order of first occurrence."""
        return dict(self.drops.counts)

    def drop_reasons(self) -> str:
        """`drop_counts` in words."""
        return ", ".join(f"{reason} {count}" for reason, count in self.drop_counts().items())

    def write(self, kind: str, records: Sequence[Record], output: str = MAIN) -> None:
        """Writes the records of one of the stage's outputs, and counts those of the main one as `out`."""
        self.counts["out" if output == MAIN else output] = len(records)
        if self.ranks.first:
            write_records(self.folder / output_path(kind, output), kind, self._leaving(kind, records, output))

    @contextmanager
    def writer(self, kind: str, output: str = MAIN) -> Iterator[RecordWriter]:
        """Yields a writer for the records of one of the stage's outputs; the file exists when the block ends. For a
        stage of one process."""
        with record_writer(self.folder / output_path(kind, output), kind) as writer:
            writer.change = lambda records: self._leaving(kind, records, output)
            yield writer
        self.counts["out" if output == MAIN else output] = writer.count

    def _leaving(self, kind: str, records: Sequence[Record], output: str) -> Sequence[Record]:
        """The records in the form in which they are written."""
        if kind == "tables":
            return records
        found = self.sourced(records)
        self.written.setdefault(output, Counter()).update(source for record in found for source in record.sources)
        return found

    def finish(self) -> None:
        """Writes the files for the report: counts, drops by reason, and the stage's own summary."""
        self.drops.finish()
        lost, what = unaccounted(self.counts, len(self.drops)) if self.adds_up else (0, "")
        if lost:
            self.alarm("records_do_not_add_up", what, value=lost, threshold=0)
        if told := nothing_left(self.counts, len(self.drops), self.drop_reasons()):
            self.alarm("nothing_left", told, value=0)
        more = {"adds_up": self.adds_up, "sources": sources_in(self.written)}
        found = {key: value for key, value in more.items() if value} | self.summary
        write_json(self.folder / "summary.json", {"counts": self.counts, "drops": self.drop_counts(), **found})


def _line_hash(line: dict[str, Any]) -> str:
    """The hash of a journal's line, so that no unit is skipped because of an edited line."""
    return digest({key: value for key, value in line.items() if key != "line"})[:16]


def hold_numerics(folder: Path, now: dict[str, Any], *, anew: bool = False) -> None:
    """Records what a stage's bits depend on in addition to settings and data; `anew` discards earlier records.

    Raises StageError for an unfinished stage that began under other conditions: it would not give the same bits.
    """
    path = folder / "numerics.json"
    before = read_object(path) if path.exists() and not anew else {}
    other = [f"{key}: {before[key]} then, {now[key]} now" for key in now if key in before and before[key] != now[key]]
    if other:
        raise StageError(
            f"{folder.name}: this stage was begun under other numerics ({'; '.join(other)}), so it would not give "
            "the same bits; restore them, or continue anyway with --accept-numerics"
        )
    if before != (noted := {**before, **now}):
        write_json(path, noted)
