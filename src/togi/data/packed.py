"""Many texts in one block of memory: their UTF-8 bytes and start offsets, without a Python object for each."""

from collections.abc import Sequence

import numpy as np


class PackedTexts:
    """Texts in the order in which they were added; `rows` is the capacity."""

    def __init__(self, rows: int) -> None:
        self.count = 0
        self._bytes = bytearray()
        self._ends = np.zeros(rows + 1, dtype=np.int64)

    def __len__(self) -> int:
        return self.count

    def add(self, texts: Sequence[str]) -> None:
        """Adds texts at the end."""
        for text in texts:
            self._bytes += text.encode("utf-8", "surrogatepass")
            self.count += 1
            self._ends[self.count] = len(self._bytes)

    def __getitem__(self, row: int) -> str:
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogatepass")
