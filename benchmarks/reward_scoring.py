"""Reward scoring: 63 answers of 32 tokens and one of 1,024, together and separately.

Optionally also one padded batch of transformers, in which the long answer makes every row long.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from harness import Outcome, Side, failures, measure, mib, parser, prepare, show, spread, summary, times, write

FULL = {"prompt": 16, "short_count": 63, "short": 32, "long": 1024}
TINY = {"prompt": 8, "short_count": 7, "short": 4, "long": 64}


def overhead(outcome: Outcome) -> float:
    """Time together over the sum of the separate times."""
    return outcome.median() / (outcome.median("short_seconds") + outcome.median("long_seconds"))


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Prints a table; returns the ratio of together to separate by side."""
    rows, figures = [], {}
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        figures[outcome.side.name] = overhead(outcome)
        apart = [spread(outcome, key) for key in ("short_seconds", "long_seconds")]
        rows.append([outcome.side.name, spread(outcome), *apart, times(overhead(outcome)), mib(outcome.peak())])
    show("reward scoring, fp32", ["side", "together", "short ones", "long one", "together over apart", "peak"], rows)
    failures(outcomes)
    return figures


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--padded", action="store_true", help="also measure the padded batch: slow, and large")
    options: argparse.Namespace = arguments.parse_args()
    config = {**prepare(options), **(TINY if options.tiny else FULL)}
    sides = [Side(name="togi", script="togi_scoring.py")]
    if options.padded or options.tiny:
        sides.append(Side(name="padded", script="padded_scoring.py", share=0.2))
    outcomes = measure("reward_scoring", sides, config, options)
    case = {"work": config, "sides": summary(outcomes), "together_over_apart": report(outcomes)}
    write("reward_scoring", options, {"fp32": case})


if __name__ == "__main__":
    main()
