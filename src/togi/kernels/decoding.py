"""Attention of one new token per row, for sampling. The keys of a prompt are stored once for all rows of its group.

Shapes: R rows, G groups, H query heads, K key heads, D head size, P prompt columns, S own columns.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from togi.kernels.attention import Options
from togi.kernels.dispatch import alike, compiled
from togi.kernels.native import Decode
from togi.kernels.norms import Norm


@dataclass(slots=True)
class New:
    """A new token's queries (R, ..., H D), keys and values (R, ..., K D), and what remains to be applied to queries and
    keys.

    First the norms of each head, then the rotation by position, with `angles`: cosine and sine (R, ..., D).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    angles: tuple[Tensor, Tensor] | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None


class Stored(NamedTuple):
    """Keys in blocks of 16 columns, prompt_key (G, K, P / 16, D, 16) and own_key (R, K, S / 16, D, 16), and values,
    prompt_value (G, K, P, D) and own_value (R, K, S, D)."""

    prompt_key: Tensor
    prompt_value: Tensor
    own_key: Tensor
    own_value: Tensor


class Rows(NamedTuple):
    """Row indices in an order that keeps groups together; and for each row its group, the length of its prompt, and the
    number of its own tokens before the new one."""

    order_R: Tensor
    group_R: Tensor
    prompt_R: Tensor
    own_R: Tensor


def supports_decode(key: Tensor, value: Tensor) -> bool:
    """Whether `decode` supports keys and values like these (..., D). The storage layout depends on it; for others the
    cache has its own layout and computes with torch."""
    size = key.shape[-1]
    return alike(key, value) and size % 32 == 0 and size == value.shape[-1] and compiled("decode") is not None


def decode(new: New, stored: Stored, rows: Rows, options: Options) -> Tensor:
    """Attention (R, 1, H D) of the new tokens to their prompts and rows. Also stores their keys and values.

    Raises LookupError if `supports_decode` returns False.
    """
    functions = compiled("decode")
    if functions is None:
        raise LookupError("decode is not compiled here; call supports_decode before storing keys")
    dtype, (_, num_keys, _, size) = stored.own_key.dtype, stored.own_value.shape
    query, key, value = (x.to(dtype).contiguous() for x in (new.query, new.key, new.value))
    cosine, sine = (x.to(dtype).contiguous() for x in new.angles) if new.angles else (None, None)
    norms = [None if norm is None else norm.weight_F.to(dtype) for norm in (new.query_norm, new.key_norm)]
    num_rows, columns = len(rows.order_R), stored.prompt_value.shape[2] + stored.own_value.shape[2]
    shared = query.numel() // (num_rows * num_keys * size)
    scratch = torch.empty(torch.get_num_threads(), shared * (size + columns))
    out = torch.empty(num_rows, 1, num_keys * shared * size, dtype=dtype)
    tensors = {
        **{"query": query, "key": key, "value": value, "out": out, "scratch": scratch},
        **stored._asdict(),
        **{name.removesuffix("_R"): tensor for name, tensor in rows._asdict().items()},
        **{"cosine": cosine, "sine": sine, "query_norm": norms[0], "key_norm": norms[1]},
    }
    functions.decode(
        Decode(
            **{name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
            rows=num_rows,
            heads=num_keys,
            shared=shared,
            size=size,
            prompt_room=stored.prompt_value.shape[2],
            own_room=stored.own_value.shape[2],
            window=options.window or 0,
            half=dtype == torch.bfloat16,
            threads=len(scratch),
            scale=options.scale,
            softcap=options.softcap or 0.0,
            epsilon=new.query_norm.epsilon if new.query_norm else 0.0,
            shift=new.query_norm.shift if new.query_norm else 0.0,
        )
    )
    return out
