"""Checks of compiled functions against torch in float64, on a few numbers, when the library is loaded.

They take some milliseconds, and catch wrong results of a compiler or processor, and argument structures that differ
between Python and C. The tests check the same functions much more thoroughly.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from togi.kernels.native import ARGUMENTS, BLOCK, Decode, Forest, Native

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""The largest allowed difference from float64, relative to the largest number: well above rounding errors, well below a
mistake."""

Found = Sequence[tuple[Tensor, Tensor]]
"""Outputs of compiled functions, each with the exact value in float64."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """The reason for which a part is not compiled here. `wrong`: it is an error, not a missing feature."""

    text: str
    wrong: bool = True


def complaint(native: Native, part: str) -> Complaint | None:
    """The reason not to use the compiled functions of that part; None if there is none."""
    if part in ARGUMENTS:
        ours, theirs = ctypes.sizeof(ARGUMENTS[part]), native.size_of(part)
        if ours != theirs:
            return Complaint(f"its arguments have {theirs} bytes in the library and {ours} here")
    if part == "linear" and not native.products:
        return Complaint("this processor has no AMX", wrong=False)
    for dtype in _types(native, part):
        for number, (found, exact) in enumerate(CHECKS[part](native, dtype)):
            error = float((found.double() - exact).abs().max() / exact.abs().max())
            if not error <= TOLERANCES[dtype]:  # also true for NaN
                return Complaint(f"output {number} in {dtype} is off by {error:.1e} of the largest number")
    return None


def _types(native: Native, part: str) -> list[torch.dtype]:
    if part == "linear":
        return [torch.bfloat16]
    return list(TOLERANCES) if part != "attend" or native.products else [torch.float32]


def _numbers(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normally distributed numbers, the same on each call."""
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def _softmax(native: Native, dtype: torch.dtype) -> Found:
    logits, grad = _numbers(dtype, (3, 50), (3,))
    target, grad, rows = torch.tensor([4, 0, 49]), grad.float(), torch.arange(3)
    logp = torch.log_softmax(logits.double() * 0.7, -1)
    grad_logits = -logp.exp() * grad.double()[:, None]
    grad_logits[rows, target] += grad.double()
    chosen, lse, entropy = native.softmax(logits, target, 0.7, entropy=True)
    native.softmax_backward_(logits, target, lse, grad, 0.7)
    assert entropy is not None
    pairs = [(logits, 0.7 * grad_logits), (chosen - lse, logp[rows, target])]
    return [*pairs, (entropy, -(logp.exp() * logp).sum(-1))]


def _attend(native: Native, dtype: torch.dtype) -> Found:
    """A trunk of 5 rows with branches of 4 and 3; 2 query heads and 1 key head."""
    rows, size, scale = 12, 32, 0.2
    query, key, value, grad = _numbers(dtype, (2, rows, size), (1, rows, size), (rows, 1, size), (rows, 2, size))
    tensors = {"query": query, "key": key, "value": value, "grad": grad}
    made = {"out": torch.empty_like(grad), **{f"grad_{name}": torch.empty_like(tensors[name]) for name in _HEADS}}
    blocks = [(0, 5, 0, 5, 0, 0, 0), (5, 9, 5, 9, 0, 0, 0), (9, 12, 9, 12, 0, 0, 0), (5, 12, 0, 5, 1, 0, 1)]
    layout = {
        **{"lse": torch.empty(2, rows), "blocks": torch.tensor(blocks), "trees": torch.tensor([0, 4])},
        **{"starts": torch.tensor([0, rows]), "scratch": torch.empty(2**20, dtype=torch.uint8)},
        **{name: torch.empty(2, rows, size) for name in ("partial_key", "partial_value")},
    }
    arguments = Forest(
        **{name: tensor.data_ptr() for name, tensor in {**tensors, **made, **layout}.items()},
        **{"room": 2**20, "rows": rows, "heads": 2, "shared": 2, "size": size, "num_trees": 1, "threads": 1},
        half=dtype == torch.bfloat16,
        scale=scale,
    )
    native.attend(arguments)
    native.attend_backward(arguments)
    return list(zip(made.values(), _plain_attention(tensors, scale), strict=True))


_HEADS = ("query", "key", "value")


def _plain_attention(tensors: dict[str, Tensor], scale: float) -> list[Tensor]:
    """Output and gradients of `_attend` in float64."""
    q, k, v, g = (tensors[name].double() for name in (*_HEADS, "grad"))
    v, g = v.transpose(0, 1), g.transpose(0, 1)
    branch, order = torch.tensor([0] * 5 + [1] * 4 + [2] * 3), torch.arange(12)
    seen = ((branch == 0) | (branch == branch[:, None])) & (order <= order[:, None])
    share = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf).softmax(-1)
    passed = g @ v.transpose(1, 2)
    scores = share * (passed - (passed * share).sum(-1, keepdim=True)) * scale
    keys, values = ((x.transpose(1, 2) @ y).sum(0, keepdim=True) for x, y in ((scores, q), (share, g)))
    return [(share @ v).transpose(0, 1), scores @ k, keys, values.transpose(0, 1)]


def _decode(native: Native, dtype: torch.dtype) -> Found:
    """Two rows after one prompt of 3 tokens, with 1 and 2 own tokens; 2 query heads and 1 key head."""
    size, own = 32, [1, 2]
    query, key, value = _numbers(dtype, (2, 1, 2, size), (2, 1, size), (2, 1, size))
    keys, values = _numbers(dtype, (3, BLOCK, size), (3, BLOCK, size))  # of the prompt, then of each row
    blocked = keys.transpose(1, 2)[:, None, None].contiguous()  # (., K, 1, D, 16)
    stored = values[:, None].contiguous()
    out = torch.empty_like(query)
    tensors = {
        **{"query": query, "key": key, "value": value, "out": out},
        **{"prompt_key": blocked[:1], "prompt_value": stored[:1], "own_key": blocked[1:], "own_value": stored[1:]},
        **{"order": torch.tensor([0, 1]), "group": torch.tensor([0, 0]), "prompt": torch.tensor([3, 3])},
        **{"own": torch.tensor(own), "scratch": torch.empty(2 * (size + 2 * BLOCK))},
    }
    expected = []
    for row, count in enumerate(own):
        seen = [torch.cat((x[0, :3], x[1 + row, :count], new[row])) for x, new in ((keys, key), (values, value))]
        scores = query[row, 0].double() @ seen[0].double().T * 0.2
        expected.append(scores.softmax(-1) @ seen[1].double())
    arguments = Decode(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        **{"rows": 2, "heads": 1, "shared": 2, "size": size, "prompt_room": BLOCK, "own_room": BLOCK},
        half=dtype == torch.bfloat16,
        threads=1,
        scale=0.2,
    )
    native.decode(arguments)
    return [(out[:, 0], torch.stack(expected))]


def _linear(native: Native, dtype: torch.dtype) -> Found:
    x, weight, bias = _numbers(dtype, (3, 64), (40, 64), (40,))
    found = native.linear(x, native.pack(weight), bias, 40)
    return [(found, x.double() @ weight.double().T + bias.double())]


CHECKS: dict[str, Callable[[Native, torch.dtype], Found]] = {
    "softmax": _softmax,
    "attend": _attend,
    "decode": _decode,
    "linear": _linear,
}
"""The parts, and the check of each."""
