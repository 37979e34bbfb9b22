"""Weights that the library maps from a model's files: the system reads their pages when they are asked for. Pages that
were read can be given back, so that a whole model is looked at in the memory of one layer."""

import ctypes
from pathlib import Path
from typing import Any

from torch import Tensor, nn

MAPS = Path("/proc/self/maps")
PAGE = 4096
DONTNEED = 4  # of madvise: these pages are read again when they are asked for


class MappedWeights:
    """Those weights of a network that lie in the files of `folder`, as this process has mapped them by now. Their
    memory is never written to. On a system that does not say what it has mapped, nothing is given back."""

    def __init__(self, folder: Path) -> None:
        self._ranges = _mapped(folder) if MAPS.exists() else []

    def let_go(self, weight: Tensor) -> None:
        """Gives the pages of a weight back, where they are a file's; the weight can be read as before."""
        start = weight.data_ptr()
        stop = start + weight.numel() * weight.element_size()
        if any(low <= start and stop <= high for low, high in self._ranges):
            low, high = start // PAGE * PAGE, -(-stop // PAGE) * PAGE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), DONTNEED)

    def read_in_passing(self, net: nn.Module) -> None:
        """From now on each part of `net` gives its weights back when its forward ends."""

        def ended(part: nn.Module, *_: Any) -> None:
            for weight in part.parameters(recurse=False):
                self.let_go(weight)

        for part in net.modules():
            part.register_forward_hook(ended)


def _mapped(folder: Path) -> list[tuple[int, int]]:
    """The addresses at which files of `folder` are mapped."""
    found, where = [], f"{folder.resolve()}/"
    for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        place, _, rest = line.partition(" ")
        if where in rest:
            low, _, high = place.partition("-")
            found.append((int(low, 16), int(high, 16)))
    return found
