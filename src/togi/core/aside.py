"""A sequence of values on disk with random access; it keeps eight bytes of each in memory."""

import json
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from togi.core.codec import from_row, kind_of, to_row
from togi.core.records import Record

Value = TypeVar("Value")

IN_MEMORY = 1 << 24
"""Bytes of values kept in memory before they are written to disk."""


class Aside(Sequence[Value]):
    """An append-only sequence on disk, read by index; each read unpacks the value again.

    `pack` turns a value into something JSON-like, and `unpack` turns it back. The file is unnamed, in `folder` (None:
    the system's folder for temporary files), so it disappears with the process, however that ends.
    """

    def __init__(
        self, pack: Callable[[Value], Any], unpack: Callable[[Any], Value], folder: Path | None = None
    ) -> None:
        self._pack = pack
        self._unpack = unpack
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder and str(folder))  # noqa: SIM115 - it lives as long as this
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])

    def add(self, values: Iterable[Value]) -> None:
        """Appends values. Raises OSError if the disk is full."""
        self._file.seek(self._ends[-1])
        for value in values:
            written = json.dumps(self._pack(value), ensure_ascii=False).encode("utf-8", "surrogatepass")
            self._file.write(written)
            self._ends.append(self._ends[-1] + len(written))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...
    def __getitem__(self, index: int | slice) -> Value | list[Value]:
        numbers = range(len(self))[index]
        return self._read(numbers) if isinstance(numbers, int) else [self._read(number) for number in numbers]

    def _read(self, number: int) -> Value:
        first, last = self._ends[number], self._ends[number + 1]
        self._file.seek(first)
        return self._unpack(json.loads(self._file.read(last - first).decode("utf-8", "surrogatepass")))


def records_aside(batches: Iterable[Sequence[Record]], folder: Path) -> Sequence[Any]:
    """The records of all batches, which are of one kind, on disk."""
    kinds: list[str] = []
    kept: Aside[Any] = Aside(to_row, lambda row: from_row(kinds[0], row), folder)
    for batch in batches:
        kinds += [kind_of(record) for record in batch[:1]]
        kept.add(batch)
    return kept
