"""The number of tokens whose keys and values fit into a given size."""

from typing import Any

import torch
from torch import Tensor, nn

from togi.core.protocols import Request
from togi.kernels import supports_decode
from togi.model.sizes import Shape, key_bytes
from togi.rollout.cache import attention_type, round_up
from togi.rollout.sampling_model import models_of


def width_of_keys(weight: Tensor, heads: int, size: int) -> int:
    """Bytes of each number in the cache, for weights such as `weight` and `heads` key heads of width `size`."""
    key = torch.empty((1, heads, 1, size), dtype=weight.dtype, device=weight.device)
    return (weight.dtype if supports_decode(key, key) else attention_type(weight)).itemsize


class KeyRoom:
    """A limit of `size` bytes on the keys and values of `net`. Raises InputError for a model of unknown sizes."""

    def __init__(self, net: nn.Module, size: float) -> None:
        config: Any = models_of(net)[0].config
        shape = Shape.of(config.to_dict())
        self.size = size
        self.token = key_bytes(shape, width_of_keys(next(net.parameters()), shape.key_heads, shape.head_width))

    @property
    def columns(self) -> int:
        """The number of tokens that fit."""
        return int(self.size // self.token)

    def problem(self, request: Request) -> str:
        """The reason why a request can never fit; empty if it can."""
        params = request.params
        needed = round_up(len(request.prompt_ids)) + params.n * round_up(params.max_tokens)
        if needed <= self.columns:
            return ""
        size = needed * self.token / 1e9
        return (
            f"the keys of its {params.n} answers of {params.max_tokens} tokens take {size:.3g} GB, "
            f"but the key cache has {self.size / 1e9:.3g}; ask for fewer or shorter answers, or enlarge it"
        )
