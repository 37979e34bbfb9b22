"""The maximum speed of this machine at the shapes of the model: the bound for all speeds.

    python benchmarks/machine.py            all figures, to results/machine.json
    python benchmarks/machine.py --probe    which fp32 matrix multiplications are exact and faster, as one JSON line
    python benchmarks/machine.py --products "fp32 default"    GFLOP/s of training in one mode, as one JSON line

`torch.backends.mkldnn.matmul.fp32_precision = "bf16"` sends fp32 matrix multiplications to oneDNN. It permits rounding
to bf16, so it is used only if matrix multiplications of these shapes stay as exact as the default's, tested against
float64.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import CACHE, parser, prepare, show, write
from torch.nn import functional as F

MODES = ("fp32 default", "fp32 onednn", "bf16")
ROUNDING = 4.0
"""oneDNN counts as rounding if its error exceeds the default's by this factor; bf16 exceeds it by thousands."""
PRODUCT_ROWS = 768
"""Tokens at once for --products: those of a micro-batch."""
GAIN = 1.1
"""The factor by which oneDNN must be faster to be chosen."""


def set_mode(mode: str) -> torch.dtype:
    """Switches the mode of matrix multiplications and returns the type to compute in."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if mode == "fp32 onednn" else "none"
    return torch.bfloat16 if mode == "bf16" else torch.float32


def shapes(model: Path) -> dict[str, tuple[int, int, int]]:
    """(outputs, inputs, how often) of the linear layers of a decoder, from its config.json."""
    config = json.loads((model / "config.json").read_text())
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or hidden // heads
    return {
        "query": (heads * width, hidden, layers),
        "key, value": (keys * width, hidden, 2 * layers),
        "output": (hidden, heads * width, layers),
        "gate, up": (inner, hidden, 2 * layers),
        "down": (hidden, inner, layers),
        "head": (config["vocab_size"], hidden, 1),
    }


def seconds(function: Callable[[], Any], least: float) -> float:
    """Best time of a call, from as many calls as take `least` seconds in total."""
    function()
    best, spent = float("inf"), 0.0
    while spent < least:
        start = time.perf_counter()
        function()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
    return best


def product_seconds(shape: tuple[int, int, int], rows: int, dtype: torch.dtype, options: Any) -> dict[str, float]:
    """Seconds of one layer's matrix multiplications for `rows` rows: forward, and backward to inputs and weights."""
    outputs, inputs, _ = shape
    x, w, g = (torch.randn(s, dtype=dtype) for s in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    least = options.least
    with torch.inference_mode():
        forward = seconds(lambda: F.linear(x, w), least)
        backward = seconds(lambda: g @ w, least) + seconds(lambda: g.t() @ x, least) if rows > 64 else 0.0
    return {"forward": forward, "backward": backward}


def model_products(mode: str, rows: int, options: Any) -> dict[str, float]:
    """Matrix multiplications of the whole model for `rows` rows: seconds and GFLOP/s."""
    dtype = set_mode(mode)
    forward = backward = flops = 0.0
    for shape in shapes(options.model).values():
        took = product_seconds(shape, rows, dtype, options)
        forward += took["forward"] * shape[2]
        backward += took["backward"] * shape[2]
        flops += 2.0 * rows * shape[0] * shape[1] * shape[2]
    result = {
        "forward_seconds": forward,
        "forward_gflops": flops / forward / 1e9,
        "forward_tokens_per_second": rows / forward,
    }
    if backward:
        result |= {
            "training_tokens_per_second": rows / (forward + backward),
            "training_gflops": 3 * flops / (forward + backward) / 1e9,
        }
    return result


def bandwidth(options: Any) -> float:
    """Read bandwidth in GB/s: the sum of 256 MiB."""
    x = torch.ones(2**26)
    return x.numel() * 4 / seconds(lambda: x.sum(), options.least) / 1e9


def errors(mode: str, model: Path) -> float:
    """Largest error of the model's matrix multiplications against float64, for 1 to 1,024 rows: kernels depend on
    shape."""
    dtype = set_mode(mode)
    torch.manual_seed(0)
    worst = 0.0
    for outputs, inputs, _ in shapes(model).values():
        w = torch.randn(min(outputs, 8192), inputs)
        for rows in (1, 2, 8, 32, 128, 256, 1024):
            x = torch.randn(rows, inputs)
            exact = x.double() @ w.double().t()
            worst = max(worst, (F.linear(x.to(dtype), w.to(dtype)).double() - exact).abs().max().item())
    return worst


def probe(options: Any) -> dict[str, Any]:
    """The fp32 matrix multiplications to use: oneDNN's if they are exact and faster."""
    default, onednn = (errors(mode, options.model) for mode in MODES[:2])
    facts: dict[str, Any] = {"error_default": default, "error_onednn": onednn, "chosen": "default"}
    if onednn > ROUNDING * default:
        return facts | {"reason": f"oneDNN rounds: error {onednn:.1e} against {default:.1e}"}
    if onednn == default:
        return facts | {"reason": "the setting changes nothing here: the same kernels run"}
    speed = [model_products(mode, 256, options)["training_gflops"] for mode in MODES[:2]]
    facts |= {"gflops_default": speed[0], "gflops_onednn": speed[1]}
    if speed[1] > GAIN * speed[0]:
        facts["chosen"] = "onednn"
    return facts | {"reason": f"both exact; default {speed[0]:.0f}, oneDNN {speed[1]:.0f} GFLOP/s"}


def survey(options: Any) -> dict[str, Any]:
    """All figures."""
    rows = (32, 128) if options.tiny else (32, 768, 2560)
    facts: dict[str, Any] = {"bandwidth_gb_per_second": bandwidth(options), "probe": probe(options)}
    for mode in MODES:
        facts[mode] = {str(count): model_products(mode, count, options) for count in rows}
    set_mode(MODES[0])
    return facts


def print_survey(facts: dict[str, Any]) -> None:
    """The figures as a table."""
    table = [
        [f"{mode}, {count} rows"]
        + [
            f"{row[key]:,.0f}" if key in row else "-"
            for key in (
                "forward_gflops",
                "training_gflops",
                "forward_tokens_per_second",
                "training_tokens_per_second",
            )
        ]
        for mode in MODES
        for count, row in facts[mode].items()
    ]
    columns = ["matrix products alone", "forward GFLOP/s", "training GFLOP/s", "forward tokens/s", "training tokens/s"]
    show(f"machine, read bandwidth {facts['bandwidth_gb_per_second']:.0f} GB/s", columns, table)


def main() -> None:
    """Command line."""
    arguments = parser("GFLOP/s of fp32 and bf16 products at the shapes of the model, and read bandwidth")
    arguments.add_argument("--probe", action="store_true", help="only choose the fp32 mode, print it as JSON")
    arguments.add_argument(
        "--products", choices=MODES, help="only measure the matrix multiplications of training in one mode"
    )
    options: argparse.Namespace = arguments.parse_args()
    options.least = 0.02 if options.tiny or options.probe or options.products else 0.3
    torch.set_num_threads(options.threads)
    if options.probe:
        options.model = options.model or CACHE / "smollm2"
        print(json.dumps(probe(options)))
        return
    if options.products:
        options.model = options.model or CACHE / "smollm2"
        print(json.dumps(model_products(options.products, PRODUCT_ROWS, options)))
        return
    options.fp32_mode = "default"  # both are measured here
    options.model = Path(prepare(options)["model"])
    facts = survey(options)
    print_survey(facts)
    write("machine", options, {"products": facts})


if __name__ == "__main__":
    main()
