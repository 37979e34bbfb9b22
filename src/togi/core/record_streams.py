"""Reads and writes files of records in parts: one row group is in memory, never the whole file.

The output is byte for byte that of `codec.write_records` for the same records.
"""

from collections import Counter
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
"""Records converted to columns at a time: as columns they take a tenth of the memory that they take as objects."""


class RecordWriter:
    """Writes records of one kind, given in portions of any size; `count` is how many were given."""

    def __init__(self, path: Path, kind: str, file: pq.ParquetWriter) -> None:
        self.path = path
        self.kind = kind
        self.count = 0
        self.change: Callable[[Sequence[Record]], Sequence[Record]] | None = None
        self._file = file
        self._waiting: list[Record] = []
        self._group: list[pa.Table] = []  # portions of the current row group
        self._rows = 0  # in it

    @property
    def waiting(self) -> int:
        """How many records are in memory."""
        return self._rows + len(self._waiting)

    def write(self, records: Sequence[Record]) -> None:
        """Appends records, after passing them through `change` if there is one."""
        self.count += len(records)
        self._waiting += records if self.change is None else self.change(records)
        while len(self._waiting) >= (rows := min(PORTION, ROWS_PER_GROUP - self._rows)):
            self._take(rows)
            if self._rows == ROWS_PER_GROUP:
                self._flush()

    def finish(self) -> None:
        """Writes the remaining records; a file without records still has its columns."""
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
    """Yields a writer for records as they come. The file exists only when the block ends without an error.

    Raises OSError if it cannot be written (a full disk), StageError for a record that cannot be stored, and TypeError
    for one of another kind.
    """
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema(kind), compression=COMPRESSION) as file:
        writer = RecordWriter(path, kind, file)
        yield writer
        writer.finish()


def count_records(path: Path) -> int:
    """The number of records in a file. Raises InputError as `codec.read_records` does."""
    with _opened(path) as (file, _):
        return file.metadata.num_rows


def file_sources(path: Path) -> Counter[tuple[Provenance, ...]]:
    """Each distinct set of sources among the records of a file, in order, with its number of records; reads no other
    columns. Raises InputError as `codec.read_records` does."""
    found: Counter[tuple[Provenance, ...]] = Counter()
    with _opened(path) as (file, (_, version)):
        for rows in file.iter_batches(columns=["source", "inherited"] if version > 2 else ["source"]):
            found.update(map(sources_of, rows.to_pylist()))
    return found


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
    """At most `rows` records of a file from record `first` on; reads only the row groups that contain them."""
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

    The chosen records, as columns, and one row group are in memory. Raises InputError as `codec.read_records` does.
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
    """The records of a file, read on demand, by index or slice. A few thousand are in memory. Raises InputError as
    `codec.read_records` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = count_records(path)
        self._block: tuple[int, list[Any]] = (-1, [])  # number and records of the block read last

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
    """Yields the open file, with the kind and the version of its records. Raises InputError for a bad file."""
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
    """Concatenates the records of files of one kind into one file; returns how many there are.

    One part is in memory at a time. Raises InputError as `codec.read_records` does, and for a part of another kind.
    """
    count = 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema(kind), compression=COMPRESSION) as file:
        for part in parts:
            with _opened(part) as (found, (other, version)):
                if other != kind:
                    raise InputError(f"{part}: contains {other}, expected {kind}")
                table = found.read()
                if version < VERSION:
                    table = to_table(part, kind, _records((kind, version), table))
                file.write_table(table.cast(schema(kind)))
                count += found.metadata.num_rows
    return count
