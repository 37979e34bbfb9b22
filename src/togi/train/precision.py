"""Computing in bfloat16 with float32 weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from togi.objectives.base import Output

Inputs = TypeVar("Inputs")


def in_bfloat16(forward: Callable[[Inputs], Output], device_type: str) -> Callable[[Inputs], Output]:
    """`forward` under autocast: matrix multiplications run in bfloat16; weights and their gradients stay float32."""

    def cast_forward(inputs: Inputs) -> Output:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return forward(inputs)

    return cast_forward


def casts_kept() -> AbstractContextManager[object]:
    """A context in which trained weights are cast only once for all forward passes of `in_bfloat16`. Torch drops its
    cached casts at the end of the outermost autocast context. This is such a context; it casts nothing itself."""
    return torch.autocast("cpu", enabled=False)
