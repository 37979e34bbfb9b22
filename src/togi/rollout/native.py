"""The sampler's own products, attention, norms and gates for CPU, `native.c`: compiled when first used.

It takes the system's C compiler a few seconds, once. Without a compiler, or with TOGI_NATIVE=0 in the environment,
sampling goes through torch alone: slower, and the same up to rounding.

Shapes: R rows, K key heads, M query heads a key head, D head size, N outputs, I inputs, F width.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from togi.core.files import sync_folder

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")

BLOCK = 16
"""Keys lie in blocks of so many columns."""

MOST_ROWS = 64
"""Products of more rows are left to torch: they are no longer bound by reading the weights."""


class Decode(ctypes.Structure):
    """The arguments of `togi_decode`, as `native.c` states them; contiguous tensors by their addresses."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_void_p) for name in ("prompt_key", "prompt_value", "own_key", "own_value")),
        *((name, ctypes.c_void_p) for name in ("order", "group", "prompt", "own", "scratch")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "query_norm", "key_norm")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "shared", "size", "prompt_room", "own_room")),
        *((name, ctypes.c_int64) for name in ("window", "half", "threads")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "epsilon", "shift")),
    )


@dataclass(frozen=True, slots=True)
class Norm:
    """x / rms(x) * (shift + weight)."""

    weight_F: Tensor
    epsilon: float
    shift: float


class Native:
    """The compiled functions. `name` follows from what they were compiled from and by; `products`: whether this
    processor has the units that `linear` is written for."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._library = library = ctypes.CDLL(str(path))
        address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        library.togi_decode.argtypes = (ctypes.POINTER(Decode),)
        library.togi_norm.argtypes = (address, address, address, size, size, number, number, size)
        library.togi_gate.argtypes = (address, address, address, size, size, size, size)
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

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """(..., F), computed in float32 and rounded once."""
        x, half, width = x.contiguous(), x.dtype == torch.bfloat16, x.shape[-1]
        y, weight = torch.empty_like(x), norm.weight_F.data_ptr()
        rows = x.numel() // width
        self._library.togi_norm(x.data_ptr(), weight, y.data_ptr(), rows, width, norm.epsilon, norm.shift, half)
        return y

    def gate(self, x: Tensor, up: Tensor, gelu: bool) -> Tensor:
        """f(x) * up, (..., F), computed in float32 and rounded once; f is SiLU, or GELU by tanh."""
        x, up, half, width = x.contiguous(), up.contiguous(), x.dtype == torch.bfloat16, x.shape[-1]
        y, rows = torch.empty_like(x), x.numel() // width
        self._library.togi_gate(x.data_ptr(), up.data_ptr(), y.data_ptr(), rows, width, gelu, half)
        return y

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


@lru_cache(maxsize=1)
def native() -> Native | None:
    """The compiled functions; None where there is no compiler or TOGI_NATIVE is 0."""
    if os.environ.get("TOGI_NATIVE") == "0":
        return None
    command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS]
    threads, compiler = threads_library(), command[0]
    if threads is None:
        return _without("torch has not loaded exactly one libgomp, whose threads it could share")
    if shutil.which(compiler) is None:
        return _without(f"the C compiler {compiler} is not found; install gcc, or name another in CC")
    try:
        path = cache_folder() / f"native-{_fingerprint(command, threads)}.so"
        if not path.exists():
            _compile([*command, str(SOURCE), threads, "-lm"], path)
        return Native(path)
    except (subprocess.CalledProcessError, OSError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return _without(f"{compiler}: {lines[0]}")


def _without(reason: str) -> None:
    log.warning("sampling goes through torch alone, which is slower: %s", reason)


def cache_folder() -> Path:
    """Where compiled files are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "togi"


def threads_library() -> str | None:
    """The OpenMP library that torch has loaded, whose threads the functions must share; None on other systems."""
    try:
        loaded = Path("/proc/self/maps").read_text()
    except FileNotFoundError:
        return None
    found = {line.split(maxsplit=5)[5] for line in loaded.splitlines() if "/libgomp" in line}
    return min(found) if len(found) == 1 else None


def _fingerprint(command: Sequence[str], threads: str) -> str:
    """What the compiled file follows from: source, compiler, processor, threads."""
    version = _output([*command, "--version"])
    processor = _output([*command, "-dM", "-E", "-x", "c", os.devnull])
    whole = "\0".join([SOURCE.read_text(), version, processor, *command, threads])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _compile(command: Sequence[str], path: Path) -> None:
    """Compiles in a folder of its own: several ranks may do so at once, and each puts the same file in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        _output([*command, "-o", str(made)])
        with made.open("rb+") as handle:
            os.fsync(handle.fileno())
        made.replace(path)
        sync_folder(path.parent)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
