"""Memory-mapped weights: the system reads their pages from a model's files on access. Pages can be released after use,
so that a whole model can be checked in the memory of one layer."""

import ctypes
from pathlib import Path
from typing import Any

from torch import Tensor, nn

MAPS = Path("/proc/self/maps")
PAGE = 4096
DONTNEED = 4  # madvise's MADV_DONTNEED: drops pages, which are read again on access


class MappedWeights:
    """The weights of a network that this process has mapped from the files of `folder` at construction. They are never
    written to. If the system does not list its mappings (/proc/self/maps), nothing is released."""

    def __init__(self, folder: Path) -> None:
        self._ranges = _mapped(folder) if MAPS.exists() else []

    def let_go(self, weight: Tensor) -> None:
        """Releases the pages of a weight if they are mapped from a file; the weight can still be read."""
        start = weight.data_ptr()
        stop = start + weight.numel() * weight.element_size()
        if any(low <= start and stop <= high for low, high in self._ranges):
            low, high = start // PAGE * PAGE, -(-stop // PAGE) * PAGE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), DONTNEED)

    def read_in_passing(self, net: nn.Module) -> None:
        """From now on, each part of `net` releases its weights after its forward pass."""

        def ended(part: nn.Module, *_: Any) -> None:
            for weight in part.parameters(recurse=False):
                self.let_go(weight)

        for part in net.modules():
            part.register_forward_hook(ended)


def _mapped(folder: Path) -> list[tuple[int, int]]:
    """The address ranges at which files of `folder` are mapped."""
    found, where = [], f"{folder.resolve()}/"
    for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        place, _, rest = line.partition(" ")
        if where in rest:
            low, _, high = place.partition("-")
            found.append((int(low, 16), int(high, 16)))
    return found
