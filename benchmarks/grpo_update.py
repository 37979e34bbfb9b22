"""One GRPO update, forward, backward and optimiser: togi against TRL's GRPOTrainer at its fastest settings.

4 groups of 8, prompt 256, answers 64. TRL runs without activation checkpointing. `togi` uses as many tokens per
micro-batch as TRL; `togi, same samples` as many samples.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from harness import Outcome, Side, failures, measure, mib, parser, prepare, ratio, show, spread, summary, times, write

FULL = {"groups": 4, "samples": 8, "prompt": 256, "answer": 64, "batch": 8}
TINY = {"groups": 2, "samples": 4, "prompt": 24, "answer": 8, "batch": 4}


def sides(shape: dict[str, int], as_it_comes: bool) -> list[Side]:
    """Ours twice, TRL tuned, and TRL as it comes."""
    padded_rows = shape["batch"] * (shape["prompt"] + shape["answer"])
    tree_rows = shape["prompt"] + shape["batch"] * shape["answer"]
    found = [
        Side(
            name="togi",
            script="togi_update.py",
            config={"tokens": padded_rows},
        ),
        Side(name="togi, same samples", script="togi_update.py", config={"tokens": tree_rows}, alone=True),
        Side(name="TRL", script="trl_update.py", home="trl"),
    ]
    if as_it_comes:
        config = {"as_it_comes": True}
        rest: dict[str, Any] = {"tuned": False, "share": 0.2, "alone": True}
        found.append(Side(name="TRL as it comes", script="trl_update.py", home="trl", config=config, **rest))
    return found


def bound(shape: dict[str, int]) -> float:
    """Tokens that a padded batch computes for each token of a forest: G (P + R) / (P + G R)."""
    count, prompt, answer = shape["samples"], shape["prompt"], shape["answer"]
    return count * (prompt + answer) / (prompt + count * answer)


def above_floor(outcome: Outcome) -> float:
    """Peak memory above weights, gradients and optimiser."""
    return outcome.peak() - outcome.ready["floor_bytes"]


def report(precision: str, shape: dict[str, int], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Prints a table; returns speed and memory of TRL over ours."""
    by_name = {outcome.side.name: outcome for outcome in outcomes}
    peer = by_name.get("TRL")
    rows, figures = [], {}
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        speed = ratio(peer, outcome) if peer else None
        memory = above_floor(outcome) / above_floor(peer) if peer and peer.rows else None
        figures[outcome.side.name] = {
            "speed_over_trl": speed,
            "above_floor_bytes": above_floor(outcome),
            "memory_over_trl": memory,
        }
        tokens = shape["groups"] * shape["samples"] * shape["answer"] / outcome.median()
        rows.append(
            [
                outcome.side.name,
                spread(outcome),
                f"{tokens:,.0f}",
                times(speed),
                mib(outcome.peak()),
                mib(outcome.ready["floor_bytes"]),
                mib(above_floor(outcome)),
                mib(outcome.ready["libraries_bytes"]),
                times(memory),
            ]
        )
    title = f"GRPO update, {precision}: {shape}; bound of the speed from shared prompts {bound(shape):.2f}x"
    columns = [
        "side",
        "seconds",
        "answer tokens/s",
        "speed",
        "peak",
        "floor",
        "above it",
        "libraries",
        "of TRL's",
    ]
    show(title, columns, rows)
    failures(outcomes)
    return figures


def run(precision: str, shape: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """One precision."""
    config = {**prepare(options), **shape, "precision": precision, "lr": 1e-6}
    outcomes = measure(f"grpo_update-{precision}", sides(shape, not options.tuned_only), config, options)
    return {
        "work": config,
        "bound_shared_prompts": bound(shape),
        "sides": summary(outcomes),
        "ratios": report(precision, shape, outcomes),
    }


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16", "bf16-weights"))
    arguments.add_argument("--groups", type=int, help="fewer groups than 4, if a precision is slow")
    arguments.add_argument("--peer-batch", type=int, help="TRL's samples per micro-batch, if another number is faster")
    arguments.add_argument("--tuned-only", action="store_true", help="leave out TRL as it comes")
    options = arguments.parse_args()
    shape = dict(TINY if options.tiny else FULL)
    shape["groups"] = options.groups or shape["groups"]
    shape["batch"] = options.peer_batch or shape["batch"]
    write("grpo_update", options, {precision: run(precision, shape, options) for precision in options.precision})


if __name__ == "__main__":
    main()
