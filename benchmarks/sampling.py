"""Sampling: togi's sampler against `generate` of transformers and vLLM on CPU.

4 prompts x 8 samples, prompt 200, 64 to 128 new tokens; every sample has its own length, the same on all sides.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

from harness import RESULTS, Outcome, Side, failures, measure, parser, prepare, show, spread, summary, times, write

FULL = {"groups": 4, "samples": 8, "prompt": 200, "shortest": 64, "longest": 128}
TINY = {"groups": 2, "samples": 4, "prompt": 20, "shortest": 4, "longest": 8}


def sides(options: argparse.Namespace) -> list[Side]:
    """vLLM gets as many threads as the others; by default it keeps one core free for serving."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[: options.threads]))
    env = {"VLLM_CPU_OMP_THREADS_BIND": cpus, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    vllm: dict[str, Any] = {"script": "vllm_sampling.py", "home": "vllm", "env": env}
    found = [
        Side(name="togi", script="togi_sampling.py"),
        Side(name="transformers", script="transformers_sampling.py"),
        Side(name="vLLM, eager", **vllm),
    ]
    if options.compiled:
        found.append(Side(name="vLLM, compiled", config={"compiled": True}, **vllm))
    return found


def rate(outcome: Outcome) -> float:
    """Median tokens per second over the repeats."""
    return statistics.median(row["tokens"] / row["seconds"] for row in outcome.rows)


def bound(precision: str, fp32_mode: str, rows: int) -> float | None:
    """Tokens per second if a step consisted only of its matrix multiplications, from results/machine.json."""
    path = RESULTS / "machine.json"
    if not path.exists():
        return None
    mode = f"fp32 {fp32_mode}" if precision == "fp32" else "bf16"
    products = json.loads(path.read_text())["cases"]["products"][mode]
    return products[str(rows)]["forward_tokens_per_second"] if str(rows) in products else None


def report(precision: str, outcomes: Sequence[Outcome], limit: float | None) -> dict[str, Any]:
    """Prints a table; returns our speed over each peer's."""
    ours = next((outcome for outcome in outcomes if outcome.side.name == "togi" and outcome.rows), None)
    rows, figures = [], {}
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        figures[outcome.side.name] = rate(ours) / rate(outcome) if ours else None
        share = f"{rate(outcome) / limit:.0%}" if limit else "-"
        speed = times(figures[outcome.side.name])
        rows.append([outcome.side.name, spread(outcome), f"{rate(outcome):,.1f}", speed, share])
    show(f"sampling, {precision}", ["side", "seconds", "tokens/s", "togi is faster by", "of the products' bound"], rows)
    failures(outcomes)
    return figures


def run(precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """One precision."""
    shape = TINY if options.tiny else FULL
    config = {**prepare(options), **shape, "precision": precision}
    outcomes = measure(f"sampling-{precision}", sides(options), config, options)
    limit = None if options.tiny else bound(precision, options.fp32_mode, shape["groups"] * shape["samples"])
    return {
        "work": config,
        "bound_tokens_per_second": limit,
        "tokens_per_second": {outcome.side.name: rate(outcome) for outcome in outcomes if outcome.rows},
        "sides": summary(outcomes),
        "ratios": report(precision, outcomes, limit),
    }


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=("fp32", "bf16"))
    arguments.add_argument("--compiled", action="store_true", help="vLLM compiled as well")
    options = arguments.parse_args()
    write("sampling", options, {precision: run(precision, options) for precision in options.precision})


if __name__ == "__main__":
    main()
