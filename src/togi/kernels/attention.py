"""Attention of forests by compiled functions (`c/attention.c`).

Shapes: H query heads, K key heads, R = H / K, T rows, D width of a head, B blocks, N trees.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from togi.kernels.native import STEP, Native


@dataclass(frozen=True, slots=True)
class Options:
    """How a layer attends: sliding window in tokens, its own included (None: all), scale and soft cap (None: none) of
    the scores."""

    window: int | None
    scale: float
    softcap: float | None = None

    @classmethod
    def asked(cls, query: Tensor, settings: dict[str, Any]) -> "Options":
        """What a layer of the library asks for among its keyword arguments; query is (..., D)."""
        scale = settings.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return cls(window=settings.get("sliding_window"), scale=scale, softcap=settings.get("softcap"))


class Arguments(ctypes.Structure):
    """The arguments of `togi_attend` and `togi_attend_backward`, as `c/attention.c` states them; `kept` are the tensors
    that must outlive the call."""

    __slots__ = ("kept",)
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "lse", "grad")),
        *((name, ctypes.c_void_p) for name in ("grad_query", "grad_key", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("partial_key", "partial_value", "blocks", "trees", "starts", "scratch")),
        *((name, ctypes.c_int64) for name in ("room", "rows", "heads", "shared", "size")),
        *((name, ctypes.c_int64) for name in ("num_trees", "window", "half", "threads")),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class Compiled:
    """The blocks of a forest as `c/attention.c` reads them: `block_B7`, the first block and the first row of each tree
    (N + 1), how many rows and keys the largest block and the largest tree have, and how many rows there are in all."""

    block_B7: Tensor
    trees_N: Tensor
    starts_N: Tensor
    queries: int
    keys: int
    rows: int
    total: int

    def room(self, size: int, width: int) -> tuple[int, int]:
        """Bytes that a thread needs for the forward and for the backward, for heads of that size, in numbers of `width`
        bytes."""
        queries, keys = (-(-n // 32) * 32 for n in (self.queries, self.keys))
        forward = (queries + 32) * (size * (width + 4) + 8) + keys * 2 * size * width + STEP**2 * (4 + width)
        backward = self.rows * 4 * size + queries * (size * (4 + 4 * width) + 8) + keys * size * (8 + 4 * width)
        return -(-forward // 64) * 64, backward + STEP**2 * (10 + 2 * width)


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of a forest by compiled functions; heads are contiguous (H, T, D) and (K, T, D), `value_TKD`, the
    output and its gradient (T, K or H, D), all float32, or bfloat16 where there are `products`."""

    native: Native
    blocks: Compiled
    options: Options

    @classmethod
    def of(
        cls, functions: Native | None, heads: tuple[Tensor, Tensor, Tensor], blocks: Compiled, options: Options
    ) -> "Attention | None":
        """None where there are no such functions for query, key and value like these, (H or K, T, D)."""
        query, key, value = heads
        half, (num_rows, size) = query.dtype == torch.bfloat16, query.shape[1:]
        if functions is None or not (functions.computes(query, key) and functions.computes(query, value)):
            return None
        alike = key.shape == value.shape and key.shape[1:] == query.shape[1:]
        if not alike or size % 32 or (half and not functions.products):
            return None
        return cls(functions, blocks, options) if blocks.total == num_rows else None

    def forward(self, query_HTD: Tensor, key_KTD: Tensor, value_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """Output (T, H, D) and log-sum-exp of the scores (H, T)."""
        num_heads, num_rows, size = query_HTD.shape
        out_THD = query_HTD.new_empty(num_rows, num_heads, size)
        lse_HT = query_HTD.new_empty(num_heads, num_rows, dtype=torch.float32)
        tensors = {"query": query_HTD, "key": key_KTD, "value": value_TKD, "out": out_THD, "lse": lse_HT}
        self.native.attend(self._arguments(tensors, self.blocks.room(size, query_HTD.itemsize)[0]))
        return out_THD, lse_HT

    def backward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients (H, T, D), (K, T, D) and (T, K, D) from `query`, `key`, `value`, `out`, `lse` and `grad`."""
        query_HTD = tensors["query"]
        names = "query", "key", "value"
        grads = {f"grad_{name}": torch.empty_like(tensors[name]) for name in names}
        shares = {f"partial_{name}": torch.empty_like(query_HTD, dtype=torch.float32) for name in names[1:]}
        room = self.blocks.room(query_HTD.shape[-1], query_HTD.itemsize)[1]
        self.native.attend_backward(self._arguments({**tensors, **grads, **shares}, room))
        return grads["grad_query"], grads["grad_key"], grads["grad_value"]

    def _arguments(self, tensors: dict[str, Tensor], room: int) -> Arguments:
        query, key, blocks = tensors["query"], tensors["key"], self.blocks
        threads = min(torch.get_num_threads(), len(query) * (len(blocks.trees_N) - 1))
        scratch = torch.empty(threads, room, dtype=torch.uint8)
        layout = {"blocks": blocks.block_B7, "trees": blocks.trees_N, "starts": blocks.starts_N, "scratch": scratch}
        found = Arguments(
            **{name: tensor.data_ptr() for name, tensor in {**tensors, **layout}.items()},
            room=room,
            rows=query.shape[1],
            heads=len(query),
            shared=len(query) // len(key),
            size=query.shape[2],
            num_trees=len(blocks.trees_N) - 1,
            window=self.options.window or 0,
            half=query.dtype == torch.bfloat16,
            threads=threads,
            scale=self.options.scale,
        )
        found.kept = tensors, scratch
        return found
