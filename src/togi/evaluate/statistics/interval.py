"""A confidence interval, and the bound for outcomes that were never seen."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over `n` prompts with its bounds at confidence `level`."""

    mean: float
    low: float
    high: float
    level: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is entirely above or below zero."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        """The interval as JSON-like values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; KeyError if a field is missing."""
        return cls(**{key: value[key] for key in ("mean", "low", "high", "level", "n")})


def unseen_share(count: int, level: float = 0.95) -> float:
    """The largest share, at this level, that is consistent with 0 of `count` independent prompts (Clopper and Pearson
    1934, Biometrika 26:404)."""
    return 1 - ((1 - level) / 2) ** (1 / count)
