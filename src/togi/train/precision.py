"""Computing in bfloat16 with float32 weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from togi.objectives.base import Output

Inputs = TypeVar("Inputs")


def in_bfloat16(forward: Callable[[Inputs], Output], device_type: str) -> Callable[[Inputs], Output]:
    """`forward` under autocast: its products run in bfloat16, the weights and their gradients stay float32."""

    def cast_forward(inputs: Inputs) -> Output:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return forward(inputs)

    return cast_forward


def casts_kept() -> AbstractContextManager[object]:
    """Inside, weights that are trained are cast once for all forwards of `in_bfloat16`: torch forgets its casts when
    the outermost context ends, and this one, which casts nothing itself, is further out."""
    return torch.autocast("cpu", enabled=False)
