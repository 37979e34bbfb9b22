"""Peak memory by vocabulary: togi against materialised logits and TRL's fused head.

Forward and backward of a group of 8 answers of 128 tokens (1,024 scored), prompt 256, two layers of width 576, fp32.
The floor is weights and gradients.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from harness import Outcome, Side, failures, measure, mib, parser, prepare, show, spread, summary, times, write

FULL = {"groups": 1, "samples": 8, "prompt": 256, "answer": 128}
TINY = {"groups": 1, "samples": 4, "prompt": 16, "answer": 8}
SIDES = (
    Side(name="togi", script="togi_vocabulary.py"),
    Side(name="logits", script="plain_vocabulary.py"),
    Side(name="TRL", script="trl_vocabulary.py", home="trl"),
)


def extra(outcome: Outcome) -> float:
    """Peak above weights, gradients and the process's size with its libraries."""
    return outcome.peak() - outcome.ready["floor_bytes"] - outcome.ready["libraries_bytes"]


def report(size: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Prints a table; returns extra memory by side."""
    ours = next((extra(outcome) for outcome in outcomes if outcome.side.name == "togi" and outcome.rows), None)
    rows, figures = [], {}
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        figures[outcome.side.name] = {"peak_bytes": outcome.peak(), "extra_bytes": extra(outcome)}
        rows.append(
            [
                outcome.side.name,
                mib(outcome.peak()),
                mib(outcome.ready["floor_bytes"]),
                mib(extra(outcome)),
                times(extra(outcome) / ours if ours else None),
                spread(outcome),
            ]
        )
    columns = ["side", "peak", "weights, gradients", "above these and libraries", "of togi's", "seconds"]
    show(f"memory, vocabulary {size:,}", columns, rows)
    failures(outcomes)
    return figures


def run(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """One vocabulary."""
    shape = TINY if options.tiny else FULL
    config = {**prepare(options), **shape, "precision": "fp32", "vocabulary": size}
    outcomes = measure(f"memory_vocab-{size}", SIDES, config, options)
    return {"work": config, "sides": summary(outcomes), "memory": report(size, outcomes)}


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--vocabulary", type=int, nargs="+", help="sizes instead of 49152, 100352 and 262144")
    arguments.set_defaults(repeats=3)
    options = arguments.parse_args()
    sizes = options.vocabulary or ([512, 2048] if options.tiny else [49152, 100352, 262144])
    write("memory_vocab", options, {str(size): run(size, options) for size in sizes})


if __name__ == "__main__":
    main()
