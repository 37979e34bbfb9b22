"""Thin wrappers of the compiled functions in `c/`: tensors in, tensors out.

The order of all operations is fixed, whatever the number of threads. `dispatch` chooses between these functions and
torch; arguments are not checked here, and must be as documented.

Shapes: N outputs, I inputs, C tokens, V vocabulary.
"""

import ctypes

import torch
from torch import Tensor

from togi.kernels.build import Build

BLOCK = 16
"""Columns per block of keys."""

STEP = 64
"""Rows, and keys, for which the attention of a forest holds scores at a time."""

SIZES = tuple(f"-D{name}={size}" for name, size in (("BLOCK", BLOCK), ("STEP", STEP)))


class Decode(ctypes.Structure):
    """The arguments of `togi_decode`, as declared in `c/decode.c`; contiguous tensors by their addresses."""

    __slots__ = ()  # so that setting a name that is not a field is an error
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_void_p) for name in ("prompt_key", "prompt_value", "own_key", "own_value")),
        *((name, ctypes.c_void_p) for name in ("order", "group", "prompt", "own", "scratch")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "query_norm", "key_norm")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "shared", "size", "prompt_room", "own_room")),
        *((name, ctypes.c_int64) for name in ("window", "half", "threads")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "epsilon", "shift")),
    )


class _Logits(ctypes.Structure):
    """The arguments of `togi_softmax`."""

    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "target", "chosen", "lse", "entropy", "grad")),
        *((name, ctypes.c_int64) for name in ("tokens", "width", "half")),
        ("factor", ctypes.c_float),
    )


class Forest(ctypes.Structure):
    """The arguments of `togi_attend` and `togi_attend_backward`, as declared in `c/attention.c`. `kept` holds the
    tensors that must outlive the call."""

    __slots__ = ("kept",)
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "lse", "grad")),
        *((name, ctypes.c_void_p) for name in ("grad_query", "grad_key", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("partial_key", "partial_value", "blocks", "trees", "starts", "scratch")),
        *((name, ctypes.c_int64) for name in ("room", "rows", "heads", "shared", "size")),
        *((name, ctypes.c_int64) for name in ("num_trees", "window", "half", "threads")),
        ("scale", ctypes.c_float),
    )


ARGUMENTS = {
    "softmax": _Logits,
    "attend": Forest,
    "decode": Decode,
}
"""The argument structure of each part; the library reports its size too."""


class Native:
    """The compiled functions. `name` depends on their sources and compiler. `products`: whether this processor has AMX,
    which `linear`, and `attend` in bfloat16, require."""

    def __init__(self, built: Build) -> None:
        self.name = built.name
        self.library = library = built.library
        address, size = ctypes.c_void_p, ctypes.c_int64
        library.togi_decode.argtypes = (ctypes.POINTER(Decode),)
        library.togi_softmax.argtypes = (ctypes.POINTER(_Logits),)
        library.togi_attend.argtypes = library.togi_attend_backward.argtypes = (ctypes.POINTER(Forest),)
        self.products = bool(library.togi_products())
        if self.products:
            library.togi_pack.argtypes = (address, address, size, size)
            library.togi_linear.argtypes = (address, address, address, address, size, size, size)

    def size_of(self, part: str) -> int:
        """Bytes of the part's arguments according to the library."""
        return getattr(self.library, f"togi_size_{part}")()

    def decode(self, arguments: Decode) -> None:
        """Attention of one new token per row."""
        self.library.togi_decode(arguments)

    def softmax(
        self, logits_CV: Tensor, target_C: Tensor, factor: float, entropy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The targets' logits times `factor`, the log-sum-exp of all logits times `factor`, and if requested the
        entropy of their distribution in nats, (C) in float32."""
        chosen_C, lse_C = (torch.empty(len(logits_CV)) for _ in range(2))
        entropy_C = torch.empty(len(logits_CV)) if entropy else None
        tensors = {"logits": logits_CV, "target": target_C.contiguous(), "chosen": chosen_C, "lse": lse_C}
        self.library.togi_softmax(_logits_arguments({**tensors, "entropy": entropy_C}, factor))
        return chosen_C, lse_C, entropy_C

    def softmax_backward_(
        self, logits_CV: Tensor, target_C: Tensor, lse_C: Tensor, grad_C: Tensor, factor: float
    ) -> None:
        """Overwrites the logits with the gradient of the targets' log-probabilities."""
        given = {"target": target_C, "lse": lse_C, "grad": grad_C.float()}
        copies = {name: tensor.contiguous() for name, tensor in given.items()}  # they must outlive the call
        self.library.togi_softmax(_logits_arguments({"logits": logits_CV, **copies}, factor))

    def attend(self, arguments: Forest) -> None:
        """Attention of a forest."""
        self.library.togi_attend(arguments)

    def attend_backward(self, arguments: Forest) -> None:
        """Gradients of `attend`."""
        self.library.togi_attend_backward(arguments)

    def pack(self, weight_NI: Tensor) -> Tensor:
        """The weight in the layout that `linear` reads."""
        outputs, inputs = weight_NI.shape
        weight_NI = weight_NI.contiguous()
        packed = weight_NI.new_empty(-(-outputs // 32) * 32 * inputs)
        self.library.togi_pack(weight_NI.data_ptr(), packed.data_ptr(), outputs, inputs)
        return packed

    def linear(self, x: Tensor, packed: Tensor, bias_N: Tensor | None, outputs: int) -> Tensor:
        """(..., N) from (..., I), bfloat16, summed in float32 and rounded once."""
        x, inputs = x.contiguous(), x.shape[-1]
        y = x.new_empty((*x.shape[:-1], outputs))
        bias = None if bias_N is None else bias_N.data_ptr()
        rows = x.numel() // inputs
        self.library.togi_linear(x.data_ptr(), packed.data_ptr(), bias, y.data_ptr(), rows, outputs, inputs)
        return y


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}


def _logits_arguments(tensors: dict[str, Tensor | None], factor: float) -> _Logits:
    """Raises ValueError if the logits are not contiguous: the gradient would be written to a copy and lost."""
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
