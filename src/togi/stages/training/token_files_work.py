"""Tokenised examples on disk, read on demand, so that only one record at a time is in memory."""

import json
import math
import os
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np

from togi.core.errors import DamagedFile
from togi.core.files import read_sealed
from togi.core.hashing import file_hash
from togi.model.forest import Sequence as TokenSequence
from togi.stages.training.example_work import Example
from togi.stages.training.token_writer_work import COUNTS, ENDS, FILES, IDS, MANIFEST, MARKS, NAMES, ROW, ROWS, SYSTEMS

PORTION = 1 << 14
"""Rows that are read at a time for a column of all examples."""


class _Read(Sequence[Example]):
    """Examples that are read on demand, by index."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        numbers = range(len(self))[index]
        return self._read(numbers) if isinstance(numbers, int) else [self._read(number) for number in numbers]

    def _read(self, number: int) -> Example:
        raise NotImplementedError


class TokenFile(_Read):
    """The examples of a folder, read one by one; their `prompt` is a hash. `more` is the manifest.

    Raises DamagedFile if a file is truncated or has changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.more = read_sealed(folder / MANIFEST, COUNTS)
        for name, (size, found) in self.more["files"].items():
            self._check(folder / name, size, found)
        self._type = np.dtype(self.more["type"])
        self._files = {name: (folder / name).open("rb") for name in FILES}
        for file in self._files.values():
            weakref.finalize(self, file.close)

    @staticmethod
    def _check(path: Path, size: int, found: str) -> None:
        there = path.stat().st_size if path.exists() else 0
        if there != size:
            raise DamagedFile(f"{path}: tokenised data is truncated: found {there} bytes, {size} were written")
        if file_hash(path) != found:
            raise DamagedFile(f"{path}: tokenised data has changed since it was written")

    def __len__(self) -> int:
        return self.more["examples"]

    def _read(self, number: int) -> Example:
        row = np.frombuffer(self._bytes(ROWS, number * ROW.itemsize, ROW.itemsize), ROW)[0]
        first, count = int(row["sequence"]), int(row["count"])
        ends = np.frombuffer(self._bytes(ENDS, 8 * first, 8 * (count + 1)), "<u8").tolist()
        name = self._bytes(NAMES, int(row["name"]), int(row["letters"]))
        margin = float(row["margin"])
        return Example(
            id=name.decode("utf-8", "surrogatepass"),
            prompt=int(row["prompt"]),
            group=tuple(self._sequence(*part) for part in pairwise(ends)),
            margin=None if math.isnan(margin) else margin,
        )

    def _sequence(self, start: int, stop: int) -> TokenSequence:
        width, low = self._type.itemsize, start // 8
        ids = np.frombuffer(self._bytes(IDS, start * width, (stop - start) * width), self._type)
        bits = np.unpackbits(np.frombuffer(self._bytes(MARKS, low, (stop + 7) // 8 - low), np.uint8))
        scored = bits[start - 8 * low : stop - 8 * low].astype(bool)
        return TokenSequence(tuple(ids.tolist()), tuple(scored.tolist()))

    def _bytes(self, name: str, start: int, size: int) -> bytes:
        """Reads instead of mapping, because mapped pages count as memory of the process."""
        return os.pread(self._files[name].fileno(), size, start)

    def column(self, name: str) -> np.ndarray:
        """A field of ROW of all examples, in order."""
        found_N = np.empty(len(self), ROW[name])
        for first in range(0, len(self), PORTION):
            part = self._bytes(ROWS, first * ROW.itemsize, PORTION * ROW.itemsize)
            rows = np.frombuffer(part, ROW)
            found_N[first : first + len(rows)] = rows[name]
        return found_N

    def system(self, key: int) -> str | None:
        """The system turn with this hash; None if there is none, as for 0."""
        lines = self._bytes(SYSTEMS, 0, self.more["files"][SYSTEMS][0]).splitlines()
        return next((text for number, text in map(json.loads, lines) if number == key), None)


class Stored(_Read):
    """The examples of several token files, in order, or those at the indices `rows_N`."""

    def __init__(self, files: Sequence[TokenFile], rows_N: np.ndarray | None = None) -> None:
        self.files = files
        self._starts = np.cumsum([0, *map(len, files)])
        self._rows_N = rows_N

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows_N is None else len(self._rows_N)

    def _read(self, number: int) -> Example:
        row = number if self._rows_N is None else int(self._rows_N[number])
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.files[file][row - int(self._starts[file])]

    def column(self, name: str) -> np.ndarray:
        """A field of ROW of all examples, in order."""
        every_N = np.concatenate([file.column(name) for file in self.files])
        return every_N if self._rows_N is None else every_N[self._rows_N]

    def among(self, chosen_N: np.ndarray) -> "Stored":
        """The examples for which `chosen_N` is true."""
        return Stored(self.files, self.rows()[chosen_N])

    def rows(self) -> np.ndarray:
        """The indices of the examples among those of all files."""
        return np.arange(len(self), dtype=np.uint32) if self._rows_N is None else self._rows_N

    def longest(self) -> int:
        """Tokens of the largest example."""
        return int(self.column("size").max(initial=0))

    def common_system(self, share: float) -> str | None:
        """The system turn that at least `share` of the examples begin with; None if there is none."""
        keys, counts = np.unique(self.column("system"), return_counts=True)
        if not len(keys) or counts.max() < share * len(self):
            return None
        key = int(keys[counts.argmax()])
        return next((text for file in self.files if (text := file.system(key)) is not None), None) if key else None


class Changed(Sequence[Example]):
    """Examples changed on reading. The change must not affect their number of tokens."""

    def __init__(self, examples: Sequence[Example], change: Callable[[int, Example], Example]) -> None:
        self.examples = examples
        self._change = change

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return self._change(numbers, self.examples[numbers])
        return [self._change(number, self.examples[number]) for number in numbers]


def largest(examples: Sequence[Example]) -> int | None:
    """Tokens of the largest example, if known without reading all; otherwise None."""
    while isinstance(examples, Changed):
        examples = examples.examples
    return examples.longest() if isinstance(examples, Stored) else None
