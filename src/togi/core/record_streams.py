"""Files of records, read and written a part at a time: memory holds one row group, never the whole file.

What is written is byte for byte what `codec.write_records` writes for the same records.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from togi.core.codec import (
    COMPRESSION,
    ROWS_PER_GROUP,
    UNREADABLE,
    UPGRADES,
    VERSION,
    from_row,
    read_label,
    schema,
    sources_of,
    to_table,
)
from togi.core.errors import InputError
from togi.core.files import atomic_file
from togi.core.records import Provenance, Record

PORTION = 1024
"""Records that become columns at once: as columns they take a tenth of what they take as objects."""


class RecordWriter:
    """Takes records of one kind in any portions; `count` is how many came."""

    def __init__(self, path: Path, kind: str, file: pq.ParquetWriter) -> None:
        self.path = path
        self.kind = kind
        self.count = 0
        self.change: Callable[[Sequence[Record]], Sequence[Record]] | None = None
        self._file = file
        self._waiting: list[Record] = []
        self._group: list[pa.Table] = []  # the row group at hand, a portion each
        self._rows = 0  # in it

    @property
    def waiting(self) -> int:
        """How many are in memory."""
        return self._rows + len(self._waiting)

    def write(self, records: Sequence[Record]) -> None:
        """Adds records at the end, as `change` leaves them where there is one."""
        self.count += len(records)
        self._waiting += records if self.change is None else self.change(records)
        while len(self._waiting) >= (rows := min(PORTION, ROWS_PER_GROUP - self._rows)):
            self._take(rows)
            if self._rows == ROWS_PER_GROUP:
                self._flush()

    def finish(self) -> None:
        """Writes what is left; a file without records still has its columns."""
        if self._waiting or not self.count:
            self._take(len(self._waiting))
        if self._group:
            self._flush()

    def _take(self, rows: int) -> None:
        portion, self._waiting = self._waiting[:rows], self._waiting[rows:]
        self._group.append(to_table(self.path, self.kind, portion))
        self._rows += rows

    def _flush(self) -> None:
        table = pa.concat_tables(self._group).combine_chunks()
        self._group, self._rows = [], 0
        self._file.write_table(table, row_group_size=ROWS_PER_GROUP)


@contextmanager
def record_writer(path: Path, kind: str) -> Iterator[RecordWriter]:
    """Writes records as they come; the file is there, whole, when the block ends, or not at all.

    Raises OSError where it cannot be written (a full disk), StageError for a record that no file can keep, and
    TypeError on one of another kind.
    """
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema(kind), compression=COMPRESSION) as file:
        writer = RecordWriter(path, kind, file)
        yield writer
        writer.finish()


def count_records(path: Path) -> int:
    """How many records a file holds. Raises InputError as `codec.read_records` does."""
    with _opened(path) as (file, _):
        return file.metadata.num_rows


def file_sources(path: Path) -> list[tuple[Provenance, ...]]:
    """Every set of sources that a record of a file has, in order; no other columns are read. Raises InputError as
    `codec.read_records` does."""
    found: dict[tuple[Provenance, ...], None] = {}
    with _opened(path) as (file, (_, version)):
        for rows in file.iter_batches(columns=["source", "inherited"] if version > 2 else ["source"]):
            found |= dict.fromkeys(map(sources_of, rows.to_pylist()))
    return list(found)


def read_batches(path: Path, rows: int) -> Iterator[list[Any]]:
    """All records of a file in order, `rows` at a time. Raises InputError as `codec.read_records` does."""
    with _opened(path) as (file, layout):
        left: list[Any] = []
        for group in range(file.num_row_groups):
            for part in file.read_row_group(group).to_batches(max_chunksize=rows):
                left += _records(layout, part)
                while len(left) >= rows:
                    batch, left = left[:rows], left[rows:]
                    yield batch
        if left:
            yield left


def read_range(path: Path, first: int, rows: int) -> list[Any]:
    """At most `rows` records of a file from record `first` on; only the row groups that hold them are read."""
    found: list[Any] = []
    with _opened(path) as (file, layout):
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            low, high = max(first, start), min(first + rows, start + size)
            if low < high:
                found += _records(layout, file.read_row_group(group).slice(low - start, high - low))
            start += size
    return found


def pick_records(path: Path, rows: np.ndarray, batch: int) -> Iterator[list[Any]]:
    """The records at some rows of a file, in the order of `rows`, `batch` at a time.

    Memory holds the chosen ones as columns, and one row group. Raises InputError as `codec.read_records` does.
    """
    sort = np.argsort(rows, kind="stable")
    with _opened(path) as (file, layout):
        parts, start = [file.schema_arrow.empty_table()], 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(rows[sort], [start, start + size])
            if low < high:
                parts.append(file.read_row_group(group).take(rows[sort[low:high]] - start))
            start += size
        table = pa.concat_tables(parts)
    place = np.empty(len(rows), dtype=np.int64)
    place[sort] = np.arange(len(rows))
    for first in range(0, len(rows), batch):
        yield _records(layout, table.take(place[first : first + batch]))


class StoredRecords(Sequence[Any]):
    """The records of a file, read as they are asked for: one after the other, or some of them at once. Some thousand
    are in memory. Raises InputError as `codec.read_records` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = count_records(path)
        self._block: tuple[int, list[Any]] = (-1, [])  # the number of the last one that was read, and its records

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any | list[Any]:
        rows = range(self._count)[index]
        if isinstance(rows, range):
            return list(chain.from_iterable(pick_records(self.path, np.asarray(rows, dtype=np.int64), BLOCK)))
        block, place = divmod(rows, BLOCK)
        if self._block[0] != block:
            self._block = (block, read_range(self.path, block * BLOCK, BLOCK))
        return self._block[1][place]


BLOCK = 4096


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pq.ParquetFile, tuple[str, int]]]:
    """The file with the kind and the version of its records; what is wrong with it is an InputError."""
    try:
        with pq.ParquetFile(path) as file:
            yield file, read_label(path, file.schema_arrow.metadata or {})
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, *UNREADABLE) as error:
        raise InputError(f"{path}: not a file of records, or a damaged one ({error})") from error


def _records(layout: tuple[str, int], rows: "pa.Table | pa.RecordBatch") -> list[Record]:
    kind, version = layout
    found = rows.to_pylist()
    for old in range(version, VERSION):
        found = [UPGRADES[old](kind, row) for row in found]
    return [from_row(kind, row) for row in found]


def join_records(path: Path, kind: str, parts: Sequence[Path]) -> int:
    """Writes the records of files of one kind, one file after the other, into one file; how many there are.

    Memory holds one part. Raises InputError as `codec.read_records` does, and for a part of another kind.
    """
    count = 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema(kind), compression=COMPRESSION) as file:
        for part in parts:
            with _opened(part) as (found, (other, version)):
                if other != kind:
                    raise InputError(f"{part}: records of {other}; {kind} go here")
                table = found.read()
                if version < VERSION:
                    table = to_table(part, kind, _records((kind, version), table))
                file.write_table(table.cast(schema(kind)))
                count += found.metadata.num_rows
    return count
