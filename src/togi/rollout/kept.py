"""Keys and values of ended requests, kept for later prompts that begin with the same tokens.

They are kept in blocks of BLOCK tokens. The blocks form a tree, because a token's keys depend on all tokens before it:
a block is found by its tokens and the block before it.

Shapes: K key heads, D head size.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from togi.kernels import BLOCK

Layers = dict[int, tuple[Tensor, Tensor]]
"""Keys and values (K, tokens, D) of some tokens, by layer."""

Name = tuple[int, tuple[int, ...]]
"""The number of the block before, and the tokens of this one."""

ROOT = 0


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """BLOCK tokens: their keys and values, and the number by which the blocks after it name it."""

    number: int
    layers: Layers

    @property
    def size(self) -> int:
        """Bytes of the keys and values."""
        return sum(each.nbytes for pair in self.layers.values() for each in pair)


class KeptKeys:
    """Blocks of at most `size` bytes in all. The block that was used longest ago goes first. `reused` counts the tokens
    that were not computed again."""

    def __init__(self, size: float = 0) -> None:
        self.size = size
        self.held = self.reused = 0
        self._blocks: OrderedDict[Name, Block] = OrderedDict()
        self._newest = ROOT

    def beginning(self, ids: Sequence[int]) -> list[Block]:
        """The blocks with which a prompt begins; they leave at least one of its tokens to compute."""
        return [self._blocks[name] for name in self._path(ids[:-1])]

    def read(self, blocks: Sequence[Block]) -> Layers:
        """The keys and values of successive blocks, for a prompt that begins with them."""
        self.reused += len(blocks) * BLOCK
        both = lambda layer, which: torch.cat([block.layers[layer][which] for block in blocks], 1)  # noqa: E731
        return {layer: (both(layer, 0), both(layer, 1)) for layer in blocks[0].layers}

    def add(self, ids: Sequence[int], read: Callable[[int], Layers]) -> None:
        """Keeps the keys of the whole blocks of `ids`. `read` gives those from a token on; it is called unless all are
        kept already."""
        path, count = self._path(ids), len(ids) // BLOCK
        if len(path) < count:
            first = len(path) * BLOCK
            new = [Layers() for _ in range(len(path), count)]
            for layer, pair in read(first).items():
                keys, values = (each[:, : count * BLOCK - first].split(BLOCK, 1) for each in pair)
                for at, own in enumerate(zip(keys, values, strict=True)):
                    new[at][layer] = own[0].clone(), own[1].clone()
            for start, layers in zip(range(first, count * BLOCK, BLOCK), new, strict=True):
                path.append(self._insert(path, tuple(ids[start : start + BLOCK]), layers))
        for name in reversed(path):  # so a block always stays longer than those after it
            self._blocks.move_to_end(name)
        while self.held > self.size:
            self.held -= self._blocks.popitem(last=False)[1].size

    def clear(self) -> None:
        """Forgets everything, for example because the weights have changed."""
        self._blocks.clear()
        self.held = 0

    def _path(self, ids: Sequence[int]) -> list[Name]:
        """The names of the kept blocks with which `ids` begins."""
        path, before = [], ROOT
        for start, stop in pairwise(range(0, len(ids) + 1, BLOCK)):
            name = before, tuple(ids[start:stop])
            if name not in self._blocks:
                break
            path.append(name)
            before = self._blocks[name].number
        return path

    def _insert(self, path: Sequence[Name], ids: tuple[int, ...], layers: Layers) -> Name:
        name = (self._blocks[path[-1]].number if path else ROOT), ids
        self._newest += 1
        block = self._blocks[name] = Block(self._newest, layers)
        self.held += block.size
        return name
