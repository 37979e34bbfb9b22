"""The cache of keys and values for decoding: every prompt once for its whole group, and each row's own tokens.

Shapes: G groups, R rows, K key heads, D head size, P prompt columns, S own columns. Buffers are allocated once for a
batch and grow only when a request needs more; the slot of a finished row or group is filled with the last one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from togi.kernels import BLOCK, supports_decode
from togi.rollout.kept import Layers

COLUMN_STEP = BLOCK
"""Own columns are read in multiples of this, so that the shapes of matrix products stay the same for several tokens."""


@dataclass(slots=True)
class LayerCache:
    """One layer's buffers: prompt_* (G, K, P, D), own_* (R, K, S, D); zero until written.

    For native attention, keys are `blocked`: (.., K, columns / 16, D, 16).
    """

    prompt_key: Tensor
    prompt_value: Tensor
    own_key: Tensor
    own_value: Tensor
    blocked: bool = False

    def write_prompt(self, group: int, key_KPD: Tensor, value_KPD: Tensor) -> None:
        """Stores the keys and values of a prompt."""
        length = key_KPD.shape[1]
        self.prompt_value[group, :, :length] = value_KPD
        if self.blocked:
            key_KPD = F.pad(key_KPD, (0, 0, 0, round_up(length) - length))
            key_KPD = key_KPD.unflatten(1, (-1, BLOCK)).transpose(2, 3)
        self.prompt_key[group, :, : key_KPD.shape[1]] = key_KPD

    def read_prompt(self, group: int, stop: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values (K, stop - start, D) of tokens of a prompt; `start` is a multiple of BLOCK."""
        key = self.prompt_key[group, :, self.columns(start) : self.columns(stop)]
        return self._plain(key)[:, : stop - start], self.prompt_value[group, :, start:stop]

    def read_own(self, row: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values (K, stop, D) of the first tokens of an answer."""
        return self._plain(self.own_key[row, :, : self.columns(stop)])[:, :stop], self.own_value[row, :, :stop]

    def grow(self, *, groups: int, prompt: int, rows: int, own: int) -> None:
        """Enlarges the buffers; keeps their contents."""
        step = BLOCK if self.blocked else 1
        self.prompt_key = _grown(self.prompt_key, groups, prompt // step)
        self.prompt_value = _grown(self.prompt_value, groups, prompt)
        self.own_key = _grown(self.own_key, rows, own // step)
        self.own_value = _grown(self.own_value, rows, own)

    def _plain(self, key: Tensor) -> Tensor:
        return key.transpose(2, 3).flatten(1, 2) if self.blocked else key

    def columns(self, length: int) -> int:
        """The number of columns, or blocks, that `length` tokens take in the key buffers."""
        return -(-length // BLOCK) if self.blocked else length


def round_up(size: int, step: int = COLUMN_STEP) -> int:
    """The next multiple of `step`."""
    return -(-size // step) * step


def attention_type(weight: Tensor) -> torch.dtype:
    """The number type of attention in decoding for weights such as `weight`: on CPU, float32 instead of a half type.

    One query times a row's own keys is too small a product for half-precision units: float32 takes half the time.
    """
    return torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype


class KeyCache:
    """Buffers for at most `groups` prompts of `prompt` tokens and `rows` answers of `own` tokens, layer by layer.

    `dtype` is the type of the buffers and of attention in decoding, unless attention is native.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.layers: dict[int, LayerCache] = {}
        self.groups = self.prompt = self.rows = self.own = 0

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        layers = self.layers.values()
        buffers = (t for each in layers for t in (each.prompt_key, each.prompt_value, each.own_key, each.own_value))
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def wanted(self, *, groups: int = 0, prompt: int = 0, rows: int = 0, own: int = 0) -> tuple[int, int, int, int]:
        """The sizes after `reserve` with the same arguments."""
        return (
            max(self.groups, groups),
            max(self.prompt, round_up(prompt)),
            max(self.rows, rows),
            max(self.own, round_up(own)),
        )

    def reserve(self, *, groups: int = 0, prompt: int = 0, rows: int = 0, own: int = 0) -> None:
        """Enlarges the buffers if needed; keeps their contents."""
        wanted = self.wanted(groups=groups, prompt=prompt, rows=rows, own=own)
        if wanted == (self.groups, self.prompt, self.rows, self.own):
            return
        self.groups, self.prompt, self.rows, self.own = wanted
        for layer in self.layers.values():
            layer.grow(groups=self.groups, prompt=self.prompt, rows=self.rows, own=self.own)

    def layer(self, index: int, key: Tensor, value: Tensor) -> LayerCache:
        """The buffers of layer `index`, created on first use to match `key` and `value` (.., K, tokens, D)."""
        if index not in self.layers:
            blocked = supports_decode(key, value)
            dtype, block = (key.dtype, (BLOCK,)) if blocked else (self.dtype, ())
            keys = key.new_empty((0, key.shape[1], 0, key.shape[3], *block), dtype=dtype)
            values = value.new_empty((0, value.shape[1], 0, value.shape[3]), dtype=dtype)
            layer = self.layers[index] = LayerCache(keys, values, keys, values, blocked)
            layer.grow(groups=self.groups, prompt=self.prompt, rows=self.rows, own=self.own)
        return self.layers[index]

    def read(self, group: int, prompt: int, row: int, own: int, start: int) -> Layers:
        """The keys and values of a sequence from token `start` on, a multiple of BLOCK: those of the `prompt` tokens of
        a group and the `own` tokens of a row."""
        found: Layers = {}
        for index, layer in self.layers.items():
            parts = [layer.read_prompt(group, prompt, start)] if start < prompt else []
            key, value = layer.read_own(row, own)
            skipped = max(start - prompt, 0)
            parts.append((key[:, skipped:], value[:, skipped:]))
            found[index] = torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
        return found

    def write(self, group: int, layers: Layers) -> None:
        """Stores the keys and values of the first tokens of a prompt."""
        for index, (key, value) in layers.items():
            self.layer(index, key[None], value[None]).write_prompt(group, key, value)

    def move_row(self, source: int, target: int, length: int) -> None:
        """Moves row `source`, which has `length` own tokens, to the slot of row `target`."""
        for layer in self.layers.values():
            _move(layer.own_key, source, target, layer.columns(length))
            _move(layer.own_value, source, target, length)

    def move_group(self, source: int, target: int, length: int) -> None:
        """Moves group `source`, whose prompt has `length` tokens, to the slot of group `target`."""
        for layer in self.layers.values():
            _move(layer.prompt_key, source, target, layer.columns(length))
            _move(layer.prompt_value, source, target, length)

    def clear(self) -> None:
        """Releases all memory."""
        self.layers.clear()
        self.groups = self.prompt = self.rows = self.own = 0


def _move(buffer: Tensor, source: int, target: int, stop: int) -> None:
    buffer[target, :, :stop] = buffer[source, :, :stop]


def _grown(old: Tensor, places: int, columns: int) -> Tensor:
    if old.shape[0] >= places and old.shape[2] >= columns:
        return old
    # zeros, not empty: a masked column is multiplied by probability 0, and 0 times NaN is NaN
    new = old.new_zeros((places, old.shape[1], columns, *old.shape[3:]))
    new[: old.shape[0], :, : old.shape[2]] = old
    return new
