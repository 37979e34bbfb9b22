"""The keys and values that decoding reads: every prompt once for its whole group, and each row's own tokens.

Shapes: G groups, R rows, K key heads, D head size, P prompt columns, S own columns. Buffers are allocated once for a
batch and grow only when a request needs more; finished rows and groups give their place to the last one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

COLUMN_STEP = 16
"""Own columns are read in multiples of this, so that products keep their shapes for several tokens."""


@dataclass(slots=True)
class LayerCache:
    """One layer's buffers: prompt_* (G, K, P, D), own_* (R, K, S, D); zeros where nothing was written yet."""

    prompt_key: Tensor
    prompt_value: Tensor
    own_key: Tensor
    own_value: Tensor


def round_up(size: int, step: int = COLUMN_STEP) -> int:
    """The next multiple of `step`."""
    return -(-size // step) * step


def attention_type(weight: Tensor) -> torch.dtype:
    """The type of decoding's attention for weights like `weight`: on CPU float32 in place of a half type.

    One query against a row's own keys is too small a product for the units of half types: float32 takes half the time.
    """
    return torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype


class KeyCache:
    """Buffers for at most `groups` prompts of `prompt` tokens and `rows` answers of `own` tokens, layer by layer.

    `dtype` is the type of the buffers and of decoding's attention.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.layers: dict[int, LayerCache] = {}
        self.groups = self.prompt = self.rows = self.own = 0

    def reserve(self, *, groups: int = 0, prompt: int = 0, rows: int = 0, own: int = 0) -> None:
        """Makes room; what is already stored is kept."""
        wanted = (
            max(self.groups, groups),
            max(self.prompt, prompt),
            max(self.rows, rows),
            max(self.own, round_up(own)),
        )
        if wanted == (self.groups, self.prompt, self.rows, self.own):
            return
        self.groups, self.prompt, self.rows, self.own = wanted
        for layer in self.layers.values():
            layer.prompt_key = _grown(layer.prompt_key, self.groups, self.prompt)
            layer.prompt_value = _grown(layer.prompt_value, self.groups, self.prompt)
            layer.own_key = _grown(layer.own_key, self.rows, self.own)
            layer.own_value = _grown(layer.own_value, self.rows, self.own)

    def layer(self, index: int, key: Tensor, value: Tensor) -> LayerCache:
        """The buffers of layer `index`, made on first use for keys and values like these (.., K, tokens, D)."""
        found = self.layers.get(index)
        if found is None:
            found = self.layers[index] = LayerCache(
                self._zeros(key, self.groups, self.prompt),
                self._zeros(value, self.groups, self.prompt),
                self._zeros(key, self.rows, self.own),
                self._zeros(value, self.rows, self.own),
            )
        return found

    def move_row(self, source: int, target: int, length: int) -> None:
        """Gives the place of row `target` to row `source`, which has `length` own tokens."""
        for layer in self.layers.values():
            layer.own_key[target, :, :length] = layer.own_key[source, :, :length]
            layer.own_value[target, :, :length] = layer.own_value[source, :, :length]

    def move_group(self, source: int, target: int, length: int) -> None:
        """Gives the place of group `target` to group `source`, whose prompt has `length` tokens."""
        for layer in self.layers.values():
            layer.prompt_key[target, :, :length] = layer.prompt_key[source, :, :length]
            layer.prompt_value[target, :, :length] = layer.prompt_value[source, :, :length]

    def clear(self) -> None:
        """Gives all memory back."""
        self.layers.clear()
        self.groups = self.prompt = self.rows = self.own = 0

    def _zeros(self, like: Tensor, places: int, columns: int) -> Tensor:
        # zeros, not empty: a column that nobody may see is multiplied by probability 0, and 0 times NaN is NaN
        return like.new_zeros((places, like.shape[1], columns, like.shape[3]), dtype=self.dtype)


def _grown(old: Tensor, places: int, columns: int) -> Tensor:
    if old.shape[0] >= places and old.shape[2] >= columns:
        return old
    new = old.new_zeros((places, old.shape[1], columns, old.shape[3]))
    new[: old.shape[0], :, : old.shape[2]] = old
    return new
