"""Which parts compiled functions compute: decided once a process, by trying each on a few numbers.

torch computes a part where there is no compiled library, where the library states the size of its arguments differently
from Python, and where its numbers differ from torch's.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from togi.kernels.build import BuildError, build
from togi.kernels.checks import CHECKS, complaint
from togi.kernels.native import SIZES, Native

log = logging.getLogger(__name__)

PARTS = tuple(CHECKS)
"""norm, gate, rotate, softmax (over the vocabulary), attend (forests), decode (one token a row), linear (few rows)."""


@dataclass(slots=True)
class Kernels:
    """The compiled functions, if there are any, and the parts that torch computes, with the reason."""

    native: Native | None
    off: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, native: Native) -> "Kernels":
        """The functions that agree with torch. One that does not is left out, aloud."""
        found = cls(native)
        for part in PARTS:
            why = complaint(native, part)
            if why is not None:
                found.off[part] = why.text
                log.log(
                    logging.WARNING if why.wrong else logging.DEBUG, "kernel %s: %s; torch computes it", part, why.text
                )
        return found

    @classmethod
    def none(cls, why: str) -> "Kernels":
        """No compiled functions."""
        return cls(None, dict.fromkeys(PARTS, why))


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """Those of this process. Raises InputError on a TOGI_NATIVE that names no instruction set."""
    if os.environ.get("TOGI_NATIVE") == "0":
        return Kernels.none("TOGI_NATIVE is 0")
    try:
        return Kernels.of(Native(build(SIZES)))
    except BuildError as error:
        log.warning("torch alone computes, which is slower: %s", error)
        return Kernels.none(str(error))


def compiled(part: str) -> Native | None:
    """The compiled functions, if they compute that part."""
    found = kernels()
    return None if part in found.off else found.native


def alike(x: Tensor, other: Tensor) -> bool:
    """Whether these are numbers that compiled functions take: on CPU, both float32 or both bfloat16."""
    known = x.dtype is torch.float32 or x.dtype is torch.bfloat16
    return known and x.dtype is other.dtype and x.is_cpu and other.is_cpu


def report() -> dict[str, str]:
    """What computes each part on CPU: "compiled", or "torch" and why."""
    off = kernels().off
    return {part: f"torch ({off[part]})" if part in off else "compiled" for part in PARTS}


def identity() -> str:
    """What the bits of this process depend on: the library's name and the parts that it does not compute."""
    found = kernels()
    if found.native is None:
        return "nothing"
    return " ".join([found.native.name, *(f"-{part}" for part in PARTS if part in found.off)])


@contextmanager
def without(*parts: str) -> Iterator[None]:
    """Inside the context torch computes these parts (none named: all), for comparisons."""
    found = kernels()
    before = found.off
    found.off = {**before, **dict.fromkeys(parts or PARTS, "switched off")}
    try:
        yield
    finally:
        found.off = before
