"""Parts of a decoder compiled for this processor, `c/`: attention of forests, norms, gates and rotary turns with their
gradients, and the sampler's attention and products.

It takes the system's C compiler some seconds, once. Without a compiler, or with TOGI_NATIVE=0 in the environment, torch
alone computes: slower, and the same up to rounding. TOGI_NATIVE=avx2 or avx512 limits them to those instructions on a
processor that has more. Every number is computed in one order, whatever the number of threads.

Shapes: R rows, K key heads, M query heads a key head, D head size, N outputs, I inputs, F width, T positions, H heads.
"""

import ctypes
import logging
import os
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from togi.kernels.build import Build, BuildError, build

log = logging.getLogger(__name__)

BLOCK = 16
"""Keys lie in blocks of so many columns."""

CHUNK = 32
"""Rows whose share of a norm's weight's gradient is summed apart."""

STEP = 64
"""Rows and keys whose scores the attention of a forest holds at once."""

SIZES = tuple(f"-D{name}={size}" for name, size in (("BLOCK", BLOCK), ("CHUNK", CHUNK), ("STEP", STEP)))

MOST_ROWS = 64
"""Products of more rows are left to torch: they are no longer bound by reading the weights."""


class Decode(ctypes.Structure):
    """The arguments of `togi_decode`, as `c/decode.c` states them; contiguous tensors by their addresses."""

    __slots__ = ()  # so that a name that is no field is refused
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_void_p) for name in ("prompt_key", "prompt_value", "own_key", "own_value")),
        *((name, ctypes.c_void_p) for name in ("order", "group", "prompt", "own", "scratch")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "query_norm", "key_norm")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "shared", "size", "prompt_room", "own_room")),
        *((name, ctypes.c_int64) for name in ("window", "half", "threads")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "epsilon", "shift")),
    )


class _Norm(ctypes.Structure):
    """The arguments of `togi_norm` and `togi_norm_backward`."""

    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "more", "weight", "sum", "y", "grad_y", "grad_sum")),
        *((name, ctypes.c_void_p) for name in ("grad_x", "grad_more", "grad_weight", "partial")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "types")),
        *((name, ctypes.c_float) for name in ("epsilon", "shift")),
    )


class _Gate(ctypes.Structure):
    """The arguments of `togi_gate`."""

    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "up", "y", "grad", "grad_x", "grad_up")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "gelu", "half")),
    )


class _Turn(ctypes.Structure):
    """The arguments of `togi_turn`."""

    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "cosine", "sine", "y")),
        *((name, ctypes.c_int64) for name in ("positions", "heads", "size", "back", "half", "angle_half")),
    )


class _Logits(ctypes.Structure):
    """The arguments of `togi_softmax`."""

    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "target", "chosen", "lse", "entropy", "grad")),
        *((name, ctypes.c_int64) for name in ("tokens", "width", "half")),
        ("factor", ctypes.c_float),
    )


_WIDE, _NARROW = torch.float32, torch.bfloat16
NORM_TYPES = {
    (_WIDE, _WIDE, _WIDE): 0,
    (_WIDE, _WIDE, _NARROW): 1,
    (_NARROW, _NARROW, _NARROW): 2,
    (_NARROW, _WIDE, _NARROW): 3,
}
"""Types of a norm's input, weight and output, as `c/layers.c` counts them."""


@dataclass(frozen=True, slots=True)
class Norm:
    """x / rms(x) * (shift + weight)."""

    weight_F: Tensor
    epsilon: float
    shift: float


class Native:
    """The compiled functions. `name` follows from what they were compiled from and by; `products`: whether this
    processor has the units that `linear` is written for."""

    def __init__(self, built: Build) -> None:
        self.name = built.name
        self._library = library = built.library
        address, size = ctypes.c_void_p, ctypes.c_int64
        library.togi_decode.argtypes = (ctypes.POINTER(Decode),)
        library.togi_norm.argtypes = library.togi_norm_backward.argtypes = (ctypes.POINTER(_Norm),)
        library.togi_gate.argtypes = (ctypes.POINTER(_Gate),)
        library.togi_turn.argtypes = (ctypes.POINTER(_Turn),)
        library.togi_softmax.argtypes = (ctypes.POINTER(_Logits),)
        library.togi_attend.argtypes = library.togi_attend_backward.argtypes = (address,)
        self.products = bool(library.togi_products())
        if self.products:
            library.togi_pack.argtypes = (address, address, size, size)
            library.togi_linear.argtypes = (address, address, address, address, size, size, size)

    def computes(self, x: Tensor, other: Tensor) -> bool:
        """Whether these are numbers that the functions compute with: on CPU, both float32 or both bfloat16."""
        known = x.dtype is torch.float32 or x.dtype is torch.bfloat16
        return known and x.dtype is other.dtype and x.is_cpu and other.is_cpu

    def attends(self, key: Tensor, value: Tensor) -> bool:
        """Whether `decode` computes with keys and values like these."""
        return self.computes(key, value) and key.shape[-1] % 32 == 0 and key.shape[-1] == value.shape[-1]

    def decode(self, arguments: Decode) -> None:
        """Attention of one new token a row."""
        self._library.togi_decode(arguments)

    def norms(self, x: Tensor, norm: Norm, dtype: torch.dtype) -> bool:
        """Whether `norm` computes with an input and a weight like these, and gives an output of that type."""
        weight_F = norm.weight_F  # one that is spread over ranks lies nowhere
        known = (x.dtype, weight_F.dtype, dtype) in NORM_TYPES
        return known and x.is_cpu and weight_F.is_cpu and weight_F.data_ptr() != 0

    def norm(self, x: Tensor, norm: Norm, dtype: torch.dtype, more: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x + more, and its norm in `dtype`, (..., F) each, computed in float32 and rounded once. What is added has
        the type of the output; where nothing is, the first result is x."""
        x = x.contiguous()
        y = torch.empty_like(x, dtype=dtype)
        whole = x if more is None else torch.empty_like(x)
        more = None if more is None else more.contiguous()
        self._library.togi_norm(_norm_arguments(x, norm, dtype, more=more, sum=whole, y=y))
        return whole, y

    def norm_backward(
        self, x: Tensor, norm: Norm, grad_y: Tensor, grad_sum: Tensor | None, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of x (..., F), of what was added to it, and of the weight (F), the last two if `wanted`; `x` is the
        sum, and `grad_sum` the gradient that comes to it from its other readers."""
        grad_y, grad_x = grad_y.contiguous(), torch.empty_like(x)
        grad_sum = None if grad_sum is None else grad_sum.contiguous()
        grad_more = torch.empty_like(grad_y) if wanted[0] and grad_y.dtype != x.dtype else None
        grad_weight = partial = None
        if wanted[1]:
            chunks = -(-(x.numel() // x.shape[-1]) // CHUNK)
            grad_weight, partial = (torch.empty(*n, x.shape[-1]) for n in ((), (chunks,)))
        self._library.togi_norm_backward(
            _norm_arguments(
                x, norm, grad_y.dtype,
                grad_y=grad_y, grad_sum=grad_sum, grad_x=grad_x, grad_more=grad_more,
                grad_weight=grad_weight, partial=partial,
            )
        )  # fmt: skip
        if grad_weight is not None:
            grad_weight = grad_weight.to(norm.weight_F.dtype)
        return grad_x, grad_x if wanted[0] and grad_more is None else grad_more, grad_weight

    def gate(self, x: Tensor, up: Tensor, gelu: bool) -> Tensor:
        """f(x) * up, (..., F), computed in float32 and rounded once; f is SiLU, or GELU by tanh."""
        x, up = x.contiguous(), up.contiguous()
        y = torch.empty_like(x)
        self._library.togi_gate(_gate_arguments(gelu, x=x, up=up, y=y))
        return y

    def gate_backward(
        self, x: Tensor, up: Tensor, grad: Tensor, gelu: bool, again: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of x and up, (..., F), and f(x) * up once more if it is wanted `again`."""
        x, up, grad = x.contiguous(), up.contiguous(), grad.to(x.dtype).contiguous()
        grad_x, grad_up, y = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x) if again else None
        self._library.togi_gate(_gate_arguments(gelu, x=x, up=up, y=y, grad=grad, grad_x=grad_x, grad_up=grad_up))
        return grad_x, grad_up, y

    def turns(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> bool:
        """Whether `turn` computes with heads and angles like these."""
        return self.computes(x, x) and self.computes(*turn)

    def turn(self, x: Tensor, turn: tuple[Tensor, Tensor], back: bool = False) -> Tensor:
        """Heads (T, H, D) turned by their cosines and sines (T, D), as (H, T, D), rounded once; `back`: a gradient
        (H, T, D) the other way."""
        x, (cosine, sine) = x.contiguous(), (angle.contiguous() for angle in turn)
        heads, positions = x.shape[:2] if back else (x.shape[1], x.shape[0])
        size, narrow = x.shape[2], torch.bfloat16
        y = x.new_empty((positions, heads, size) if back else (heads, positions, size))
        self._library.togi_turn(
            _Turn(
                *(tensor.data_ptr() for tensor in (x, cosine, sine, y)),
                positions, heads, size, back, x.dtype == narrow, cosine.dtype == narrow,
            )
        )  # fmt: skip
        return y

    def softmax(
        self, logits_CV: Tensor, target_C: Tensor, factor: float, entropy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The targets' logits times `factor`, the log-sum-exp of all logits times `factor`, and the entropy of their
        distribution in nats if it is wanted, (C) in float32."""
        chosen_C, lse_C = (torch.empty(len(logits_CV)) for _ in range(2))
        entropy_C = torch.empty(len(logits_CV)) if entropy else None
        tensors = {"logits": logits_CV, "target": target_C.contiguous(), "chosen": chosen_C, "lse": lse_C}
        self._library.togi_softmax(_logits_arguments({**tensors, "entropy": entropy_C}, factor))
        return chosen_C, lse_C, entropy_C

    def softmax_backward_(
        self, logits_CV: Tensor, target_C: Tensor, lse_C: Tensor, grad_C: Tensor, factor: float
    ) -> None:
        """Puts the gradient of the targets' log-probabilities in the place of the logits."""
        given = {"target": target_C, "lse": lse_C, "grad": grad_C.float()}
        copies = {name: tensor.contiguous() for name, tensor in given.items()}  # they must outlive the call
        self._library.togi_softmax(_logits_arguments({"logits": logits_CV, **copies}, factor))

    def attend(self, arguments: ctypes.Structure) -> None:
        """Attention of a forest; the arguments are those of `togi.model.blocks`."""
        self._library.togi_attend(ctypes.addressof(arguments))

    def attend_backward(self, arguments: ctypes.Structure) -> None:
        """Its gradients."""
        self._library.togi_attend_backward(ctypes.addressof(arguments))

    def multiplies(self, weight_NI: Tensor) -> bool:
        """Whether `linear` computes with a weight like this."""
        known = weight_NI.dtype == torch.bfloat16 and weight_NI.device.type == "cpu"
        return self.products and known and weight_NI.shape[1] % 32 == 0

    def pack(self, weight_NI: Tensor) -> Tensor:
        """The weight in the layout that `linear` reads."""
        outputs, inputs = weight_NI.shape
        weight_NI = weight_NI.contiguous()
        packed = weight_NI.new_empty(-(-outputs // 32) * 32 * inputs)
        self._library.togi_pack(weight_NI.data_ptr(), packed.data_ptr(), outputs, inputs)
        return packed

    def linear(self, x: Tensor, packed: Tensor, bias_N: Tensor | None, outputs: int) -> Tensor:
        """(..., N) from (..., I), bfloat16, summed in float32 and rounded once."""
        x, inputs = x.contiguous(), x.shape[-1]
        y = x.new_empty((*x.shape[:-1], outputs))
        bias = None if bias_N is None else bias_N.data_ptr()
        rows = x.numel() // inputs
        self._library.togi_linear(x.data_ptr(), packed.data_ptr(), bias, y.data_ptr(), rows, outputs, inputs)
        return y


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}


def _norm_arguments(x: Tensor, norm: Norm, dtype: torch.dtype, **tensors: Tensor | None) -> _Norm:
    return _Norm(
        **_addresses({"x": x, "weight": norm.weight_F, **tensors}),
        rows=x.numel() // x.shape[-1],
        width=x.shape[-1],
        types=NORM_TYPES[x.dtype, norm.weight_F.dtype, dtype],
        epsilon=norm.epsilon,
        shift=norm.shift,
    )


def _gate_arguments(gelu: bool, **tensors: Tensor | None) -> _Gate:
    x = tensors["x"]
    assert x is not None
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    return _Gate(**_addresses(tensors), rows=rows, width=width, gelu=gelu, half=x.dtype == torch.bfloat16)


def _logits_arguments(tensors: dict[str, Tensor | None], factor: float) -> _Logits:
    """Raises ValueError for logits that are not contiguous: of a copy the gradient would be lost."""
    logits = tensors["logits"]
    assert logits is not None
    if not logits.is_contiguous():
        raise ValueError("logits must be contiguous")
    return _Logits(
        **_addresses(tensors),
        tokens=logits.shape[0],
        width=logits.shape[1],
        half=logits.dtype == torch.bfloat16,
        factor=factor,
    )


@lru_cache(maxsize=1)
def native() -> Native | None:
    """The compiled functions; None where they cannot be compiled, or TOGI_NATIVE is 0.

    Raises InputError on a TOGI_NATIVE that names no instruction set.
    """
    if os.environ.get("TOGI_NATIVE") == "0":
        return None
    try:
        return Native(build(SIZES))
    except BuildError as error:
        log.warning("torch alone computes, which is slower: %s", error)
        return None
