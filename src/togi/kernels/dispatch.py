"""Chooses the parts that compiled functions compute, once per process, by testing each on a few numbers.

torch computes a part if there is no compiled library, if library and Python disagree on the size of its arguments, or
if its results are wrong.
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
"""softmax (over the vocabulary), attend (forests), decode (one token per row), linear (few rows)."""


@dataclass(slots=True)
class Kernels:
    """The compiled functions, if there are any, and the parts that torch computes, with the reasons."""

    native: Native | None
    off: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, native: Native) -> "Kernels":
        """The functions that pass their checks. The others are left out, and logged."""
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
    """The kernels of this process. Raises InputError if TOGI_NATIVE is not a known instruction set."""
    if os.environ.get("TOGI_NATIVE") == "0":
        return Kernels.none("TOGI_NATIVE is 0")
    try:
        return Kernels.of(Native(build(SIZES)))
    except BuildError as error:
        log.warning("no compiled kernels, so torch computes everything, which is slower: %s", error)
        return Kernels.none(str(error))


def compiled(part: str) -> Native | None:
    """The compiled functions, if they compute the part."""
    found = kernels()
    return None if part in found.off else found.native


def alike(x: Tensor, other: Tensor) -> bool:
    """Whether compiled functions accept these tensors: on CPU, both float32 or both bfloat16."""
    known = x.dtype is torch.float32 or x.dtype is torch.bfloat16
    return known and x.dtype is other.dtype and x.is_cpu and other.is_cpu


def report() -> dict[str, str]:
    """What computes each part on CPU: "compiled", or "torch" with the reason."""
    off = kernels().off
    return {part: f"torch ({off[part]})" if part in off else "compiled" for part in PARTS}


def identity() -> str:
    """What bit-identical results depend on: the library's name and the parts that it does not compute."""
    found = kernels()
    if found.native is None:
        return "nothing"
    return " ".join([found.native.name, *(f"-{part}" for part in PARTS if part in found.off)])


@contextmanager
def without(*parts: str) -> Iterator[None]:
    """A context in which torch computes these parts (by default all), for comparisons."""
    found = kernels()
    before = found.off
    found.off = {**before, **dict.fromkeys(parts or PARTS, "switched off")}
    try:
        yield
    finally:
        found.off = before
