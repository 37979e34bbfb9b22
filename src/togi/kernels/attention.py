"""Attention of forests on CPU, as a sum of dense blocks.

Shapes: H query heads, K key heads, R = H / K, T rows, D width of a head, B blocks, N trees.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from togi.kernels.dispatch import alike, compiled
from togi.kernels.native import STEP, Forest, Native

SHORT = 512
"""Keys below which the kernel's backward is up to twice as fast in float32 as in bfloat16 (measured with AMX)."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True, slots=True)
class Options:
    """A layer's attention: sliding window in tokens, the query's own included (None: unlimited), and scale and soft cap
    (None: none) of the scores."""

    window: int | None
    scale: float
    softcap: float | None = None

    @classmethod
    def asked(cls, query: Tensor, settings: dict[str, Any]) -> "Options":
        """The options in the keyword arguments of a layer of the library; query is (..., D)."""
        scale = settings.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return cls(window=settings.get("sliding_window"), scale=scale, softcap=settings.get("softcap"))


@dataclass(frozen=True, slots=True)
class Block:
    """Query rows [q0, q1) against key rows [k0, k1), both consecutive in position.

    `shift` is position(q0) - position(k0); with shift 0 a query sees exactly its own key and earlier ones. `see`: all
    keys, earlier ones, or earlier ones inside the window. `merge`: an earlier block has already set these rows.
    """

    q0: int
    q1: int
    k0: int
    k1: int
    see: str
    shift: int = 0
    merge: bool = False


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The blocks in the form of `c/attention.c`: `block_B7`; the first block and the first row of each tree (N + 1);
    the most rows (`queries`) and keys of a block, the most rows of a tree, and the total number of rows."""

    block_B7: Tensor
    trees_N: Tensor
    starts_N: Tensor
    queries: int
    keys: int
    rows: int
    total: int

    def room(self, size: int, width: int) -> tuple[int, int]:
        """Bytes that a thread needs for the forward and for the backward pass, for heads of that size and numbers of
        `width` bytes."""
        queries, keys = (-(-n // 32) * 32 for n in (self.queries, self.keys))
        forward = (queries + 32) * (size * (width + 4) + 8) + keys * 2 * size * width + STEP**2 * (4 + width)
        backward = self.rows * 4 * size + queries * (size * (4 + 4 * width) + 8) + keys * size * (8 + 4 * width)
        return -(-forward // 64) * 64, backward + STEP**2 * (10 + 2 * width)


@dataclass(frozen=True, slots=True)
class Blocks:
    """All blocks of a forest, as objects and as a table. Blocks that set rows come before those that merge."""

    each: tuple[Block, ...]
    table: BlockTable


def attend(query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, blocks: Blocks, options: Options) -> Tensor:
    """Attention of a forest, (H, T, D), differentiable in query, key and value. All must be on CPU, with one type and
    one head size, and the scores must have no soft cap."""
    functions = functions_for((query_HTD, key_KTD, value_KTD), blocks.table)
    if functions is not None:
        calls = Calls(functions, blocks.table, options)
        out_THD: Tensor = _CompiledAttention.apply(query_HTD, key_KTD, value_KTD.transpose(0, 1), calls)  # type: ignore
        return out_THD.transpose(0, 1)
    query_KRTD = query_HTD.unflatten(0, (key_KTD.shape[0], -1))
    out_KRTD: Tensor = BlockAttention.apply(query_KRTD, key_KTD, value_KTD, blocks.each, options)  # type: ignore
    return out_KRTD.flatten(0, 1)


def functions_for(heads: tuple[Tensor, Tensor, Tensor], table: BlockTable) -> Native | None:
    """The compiled functions, if they support query, key and value like these, (H or K, T, D)."""
    query, key, value = heads
    num_rows, size = query.shape[1:]
    same = key.shape == value.shape and key.shape[1:] == query.shape[1:]
    if not (alike(query, key) and alike(query, value) and same) or size % 32 or table.total != num_rows:
        return None
    return compiled("attend")


# --- by torch ---------------------------------------------------------------------------------------------------------


def _mask(block: Block, options: Options, like: Tensor) -> Tensor | None:
    """Additive mask (rows, keys) of a windowed block; None for the others."""
    if block.see != "window" or options.window is None:
        return None
    query_Q = torch.arange(block.q1 - block.q0, device=like.device) + block.shift
    distance_QK = query_Q[:, None] - torch.arange(block.k1 - block.k0, device=like.device)
    unseen_QK = (distance_QK < 0) | (distance_QK >= options.window)
    return torch.zeros(unseen_QK.shape, dtype=like.dtype, device=like.device).masked_fill_(unseen_QK, -torch.inf)


class BlockAttention(torch.autograd.Function):
    """Attention as a sum of dense blocks. The backward pass of a block needs only the merged output and log-sum-exp of
    its rows, so nothing of size rows x keys is kept."""

    @staticmethod
    def forward(  # order of the arguments: context, then tensors, then the rest
        ctx: Any, query_KRTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, blocks: tuple[Block, ...], options: Options
    ) -> Tensor:
        num_keys, num_shared, rows_in_all, width = query_KRTD.shape
        # in the memory order of the layer's output, so that it is stored only once
        out_KRTD = query_KRTD.new_empty(rows_in_all, num_keys, num_shared, width).permute(1, 2, 0, 3)
        wide = torch.promote_types(query_KRTD.dtype, torch.float32)
        lse_KRT = query_KRTD.new_empty(query_KRTD.shape[:3], dtype=wide)
        for block in blocks:
            part, part_lse = _flash(
                *_inputs(block, query_KRTD, key_KTD, value_KTD),
                is_causal=block.see == "earlier",
                attn_mask=_mask(block, options, query_KRTD),
                scale=options.scale,
            )
            shape = (*query_KRTD.shape[:2], block.q1 - block.q0)
            part, part_lse = part.reshape(*shape, -1), part_lse.reshape(shape)
            rows = (slice(None), slice(None), slice(block.q0, block.q1))
            if block.merge:
                joined = torch.logaddexp(lse_KRT[rows], part_lse)
                weight, part_weight = (lse_KRT[rows] - joined).exp_(), (part_lse - joined).exp_()
                out_KRTD[rows] = out_KRTD[rows] * weight[..., None] + part * part_weight[..., None]
                lse_KRT[rows] = joined
            else:
                out_KRTD[rows], lse_KRT[rows] = part, part_lse
        ctx.save_for_backward(query_KRTD, key_KTD, value_KTD, out_KRTD, lse_KRT)
        ctx.blocks, ctx.options = blocks, options
        return out_KRTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_KRTD, key_KTD, value_KTD, out_KRTD, lse_KRT = ctx.saved_tensors
        blocks, options, grad_KRTD, dtype = ctx.blocks, ctx.options, grads[0], query_KRTD.dtype
        if max(block.k1 - block.k0 for block in blocks) < SHORT:
            query_KRTD, key_KTD, value_KTD, out_KRTD, grad_KRTD = (
                x.to(lse_KRT.dtype) for x in (query_KRTD, key_KTD, value_KTD, out_KRTD, grad_KRTD)
            )
        grad_query = torch.empty_like(query_KRTD)
        grad_key, grad_value = torch.zeros_like(key_KTD), torch.zeros_like(value_KTD)
        for block in blocks:
            query, key, value = _inputs(block, query_KRTD, key_KTD, value_KTD)
            rows = (slice(None), slice(None), slice(block.q0, block.q1))
            part_query, part_key, part_value = _flash_backward(
                grad_KRTD[rows].reshape(query.shape),
                query,
                key,
                value,
                out_KRTD[rows].reshape(query.shape),
                lse_KRT[rows].reshape(query.shape[:3]),
                0.0,
                block.see == "earlier",
                attn_mask=_mask(block, options, query_KRTD),
                scale=options.scale,
            )
            part_query = part_query.reshape(grad_query[rows].shape)
            if block.merge:
                grad_query[rows] += part_query
            else:
                grad_query[rows] = part_query
            grad_key[:, block.k0 : block.k1] += part_key.sum(1)
            grad_value[:, block.k0 : block.k1] += part_value.sum(1)
        return grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype), None, None


def _inputs(block: Block, query_KRTD: Tensor, key_KTD: Tensor, value_KTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a block, (K, heads, rows, D). If all rows see all keys, the heads that share a key form
    one long list of queries, so that the keys are read once. The list is split so that the threads, which compute one
    head each, have equal work."""
    num_keys, num_shared, _, width = query_KRTD.shape
    query = query_KRTD[:, :, block.q0 : block.q1]
    key, value = key_KTD[:, None, block.k0 : block.k1], value_KTD[:, None, block.k0 : block.k1]
    if block.see == "all":
        threads = torch.get_num_threads()
        parts = threads // gcd(threads, num_keys)
        num_shared = parts if num_shared * (block.q1 - block.q0) % parts == 0 else 1
        query = query.reshape(num_keys, num_shared, -1, width)
    return query, key.expand(-1, num_shared, -1, -1), value.expand(-1, num_shared, -1, -1)


# --- compiled ---------------------------------------------------------------------------------------------------------


class _CompiledAttention(torch.autograd.Function):
    """Attention by compiled functions, (T, H, D), from (H, T, D), (K, T, D) and (T, K, D)."""

    @staticmethod
    def forward(ctx: Any, query_HTD: Tensor, key_KTD: Tensor, value_TKD: Tensor, calls: "Calls") -> Tensor:
        heads = query_HTD.contiguous(), key_KTD.contiguous(), value_TKD.contiguous()
        out_THD, lse_HT = calls.forward(*(calls.readable(x) for x in heads))
        out_THD = out_THD.to(query_HTD.dtype)
        ctx.save_for_backward(*heads, out_THD, lse_HT)
        ctx.calls = calls
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        names, calls, dtype = ("query", "key", "value", "out", "lse", "grad"), ctx.calls, grads[0].dtype
        given = (calls.readable(x) for x in (*ctx.saved_tensors, grads[0].contiguous()))
        found = calls.backward(dict(zip(names, given, strict=True)))
        return *(grad.to(dtype) for grad in found), None


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of the compiled functions. Queries (H, T, D), keys (K, T, D), values (T, K, D), output and its gradient (T,
    H, D) are contiguous, and all float32, or bfloat16 if the library has `products`."""

    native: Native
    table: BlockTable
    options: Options

    def readable(self, x: Tensor) -> Tensor:
        """x in a type that the library reads: without `products` only float32, which is still faster than torch's
        attention in bfloat16."""
        return x if self.native.products else x.float()

    def forward(self, query_HTD: Tensor, key_KTD: Tensor, value_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """Output (T, H, D) and log-sum-exp of the scores (H, T)."""
        num_heads, num_rows, size = query_HTD.shape
        out_THD = query_HTD.new_empty(num_rows, num_heads, size)
        lse_HT = query_HTD.new_empty(num_heads, num_rows, dtype=torch.float32)
        tensors = {"query": query_HTD, "key": key_KTD, "value": value_TKD, "out": out_THD, "lse": lse_HT}
        self.native.attend(self._arguments(tensors, self.table.room(size, query_HTD.itemsize)[0]))
        return out_THD, lse_HT

    def backward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients (H, T, D), (K, T, D) and (T, K, D) from `query`, `key`, `value`, `out`, `lse` and `grad`."""
        query_HTD = tensors["query"]
        names = "query", "key", "value"
        grads = {f"grad_{name}": torch.empty_like(tensors[name]) for name in names}
        shares = {f"partial_{name}": torch.empty_like(query_HTD, dtype=torch.float32) for name in names[1:]}
        room = self.table.room(query_HTD.shape[-1], query_HTD.itemsize)[1]
        self.native.attend_backward(self._arguments({**tensors, **grads, **shares}, room))
        return grads["grad_query"], grads["grad_key"], grads["grad_value"]

    def _arguments(self, tensors: dict[str, Tensor], room: int) -> Forest:
        query, key, table = tensors["query"], tensors["key"], self.table
        threads = min(torch.get_num_threads(), len(query) * (len(table.trees_N) - 1))
        scratch = torch.empty(threads, room, dtype=torch.uint8)
        layout = {"blocks": table.block_B7, "trees": table.trees_N, "starts": table.starts_N, "scratch": scratch}
        found = Forest(
            **{name: tensor.data_ptr() for name, tensor in {**tensors, **layout}.items()},
            room=room,
            rows=query.shape[1],
            heads=len(query),
            shared=len(query) // len(key),
            size=query.shape[2],
            num_trees=len(table.trees_N) - 1,
            window=self.options.window or 0,
            half=query.dtype == torch.bfloat16,
            threads=threads,
            scale=self.options.scale,
        )
        found.kept = tensors, scratch
        return found
