"""Measures which arithmetic is best on this machine: accuracy against float64, then speed.

`torch.backends.mkldnn.matmul.fp32_precision = "bf16"` sends fp32 products to another library, which on many machines is
faster and equally accurate; but the setting permits rounding, and some machines do round. So it is measured, and stays
off if it costs accuracy or brings no speed. Products use bf16 only if that is really faster than fp32.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]
Mode = Literal["default", "onednn"]

ROWS = (1, 16, 128, 1024)  # kernels are chosen by shape
TIMED_ROWS = 100
WEIGHTS = ((576, 1536), (1536, 576))
EXACT_FACTOR = 4.0  # errors of accurate libraries differ by a small factor; those of bf16 are thousands of times larger
MIN_GAIN = 1.4  # well above the noise on a busy machine, so that a machine always makes the same choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """The arithmetic of a run. `fp32_mode` "onednn" means that the setting above is on; `compute_dtype` is the type of
    matrix products.

    Measurements: the largest error against float64 relative to the default's, and speed relative to the default fp32.
    """

    device: str
    fp32_mode: Mode
    compute_dtype: Literal["float32", "bfloat16"]
    threads: int
    cpu: str
    onednn_error: float = 0.0
    onednn_speed: float = 0.0
    bf16_speed: float = 0.0

    def describe(self) -> str:
        """One line for the log."""
        if self.device != "cpu":
            return f"{self.device}: products in {self.compute_dtype}"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        chosen = f"cpu ({self.cpu}, {threads}): products in {self.compute_dtype}"
        if not self.bf16_speed:
            return f"{chosen}, as requested"
        setting = "on" if self.fp32_mode == "onednn" else "off"
        return (
            f"{chosen} (bfloat16 is {self.bf16_speed:.2f} times as fast as float32); oneDNN for float32 is {setting} "
            f"({self.onednn_speed:.2f} times as fast, {self.onednn_error:.3g} times the error)"
        )

    @property
    def dtype(self) -> torch.dtype:
        """`compute_dtype` as a torch dtype."""
        return torch.bfloat16 if self.compute_dtype == "bfloat16" else torch.float32


@contextmanager
def fp32_products(mode: Mode) -> Iterator[None]:
    """A context in which products of fp32 tensors use `mode`."""
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if mode == "onednn" else before  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before  # type: ignore[attr-defined]


def worst_errors(products: Sequence[Product]) -> list[float]:
    """The largest error of each product function against float64, over 1 to 1,024 rows with normal entries."""
    generator = torch.Generator().manual_seed(0)
    worst = [0.0] * len(products)
    for width, out in WEIGHTS:
        weight = torch.randn(out, width, generator=generator)
        rows = torch.randn(max(ROWS), width, generator=generator)
        exact = rows.double() @ weight.double().T
        for i, product in enumerate(products):
            for count in ROWS:
                error = (product(rows[:count], weight) - exact[:count]).abs().max()
                worst[i] = max(worst[i], float(error))
    return worst


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """The default product."""
    return torch.nn.functional.linear(rows, weight)


def onednn(rows: Tensor, weight: Tensor) -> Tensor:
    """The product with the setting on, which permits rounding."""
    with fp32_products("onednn"):
        return linear(rows, weight)


def seconds(ways: Sequence[tuple[Product, torch.dtype]]) -> list[float]:
    """Seconds of one product of 100 rows, the best of five for each method. Methods are interleaved so that machine
    load affects them equally."""
    generator = torch.Generator().manual_seed(1)
    rows, weight = (torch.randn(n, 576, generator=generator) for n in (TIMED_ROWS, 1536))
    best = [float("inf")] * len(ways)
    for _ in range(6):  # the first round is slower and cannot be the best
        for i, (product, dtype) in enumerate(ways):
            operands = rows.to(dtype), weight.to(dtype)
            start = time.perf_counter()
            product(*operands)
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def processor() -> str:
    """The processor's architecture and instruction set."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def choose_numerics(device: torch.device | str = "cpu", *, onednn: Product = onednn) -> Numerics:
    """Chooses the arithmetic for `device`; takes less than a second, and changes no setting (see `apply_numerics`).

    `onednn` is the alternative that is measured for fp32.
    """
    kind = torch.device(device).type
    cpu = processor()
    threads = torch.get_num_threads()
    if kind != "cpu":
        wide = kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "float32" if wide else "bfloat16"
        return Numerics(device=kind, fp32_mode="default", compute_dtype=dtype, threads=threads, cpu=cpu)
    default_error, onednn_error = worst_errors([linear, onednn])
    ways = [(linear, torch.float32), (onednn, torch.float32), (linear, torch.bfloat16)]
    plain, other, half = seconds(ways)
    use_onednn = onednn_error <= EXACT_FACTOR * default_error and plain / other >= MIN_GAIN
    best = other if use_onednn else plain
    return Numerics(
        device=kind,
        fp32_mode="onednn" if use_onednn else "default",
        compute_dtype="bfloat16" if best / half >= MIN_GAIN else "float32",
        threads=threads,
        cpu=cpu,
        onednn_error=onednn_error / default_error,
        onednn_speed=plain / other,
        bf16_speed=plain / half,
    )


def apply_numerics(numerics: Numerics) -> None:
    """Makes the process compute as `numerics` specifies."""
    torch.set_num_threads(numerics.threads)
    if numerics.fp32_mode == "onednn":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
