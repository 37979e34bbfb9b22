"""Weak scaling on the CPU: two ranks of one thread against one, each rank with the same work.

Tokens per second and rank, and the counted bytes that a rank receives in a step, next to those that FSDP2 must send. A
step of `grpo` is its update: ranks sample independently. On one machine bytes pass through memory, so the time shows
the cost of sharding and waiting, not of a network.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from harness import Outcome, Side, failures, measure, mib, parser, prepare, show, spread, summary, write

SFT = {"work": "sft", "texts": 12, "shortest": 50, "longest": 400, "unscored": 0.5, "tokens": 1024}
GRPO = {"work": "grpo", "groups": 2, "samples": 8, "prompt": 256, "answer": 64, "tokens": 1024}
TINY_SFT = {**SFT, "texts": 4, "shortest": 8, "longest": 24, "tokens": 64}
TINY_GRPO = {**GRPO, "groups": 2, "samples": 4, "prompt": 12, "answer": 8, "tokens": 64}
SIDES = tuple(
    Side(name=f"{size} rank{'s' * (size > 1)}", script="togi_ranks.py", config={"ranks": size}) for size in (1, 2)
)


def per_rank(outcome: Outcome) -> float:
    """Tokens per second and rank."""
    return outcome.ready["tokens_a_rank"] / outcome.median()


def report(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Prints a table; returns the speed of each rank, that of a single rank, and the bytes."""
    by_name = {outcome.side.name: outcome for outcome in outcomes if outcome.rows}
    rows, figures = [], {}
    for label, outcome in by_name.items():
        received, least = outcome.ready["received"], outcome.ready["bound"]
        speed, sent = per_rank(outcome), {kind: received.get(kind, 0) for kind in least}
        alone = by_name.get(SIDES[0].name)
        share = speed / per_rank(alone) if alone else None
        figures[label] = {
            "tokens_per_second_and_rank": speed,
            "of_one_alone": share,
            "received": received,
            "bound": least,
        }
        more = sum(received.values()) - sum(sent.values())
        cells = [f"{speed:,.0f}", "" if share is None else f"{share:.0%}"]
        cells += [f"{mib(sent[kind])} of {mib(least[kind])}" for kind in least]
        rows.append([label, spread(outcome), *cells, f"{more:,}", mib(outcome.peak())])
    columns = ["side", "seconds", "tokens/s and rank", "of one alone", "gathered, of bound", "scattered, of bound"]
    show(f"{name}: a step", [*columns, "other bytes", "peak of rank 0"], rows)
    failures(outcomes)
    return figures


def run(name: str, work: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One kind of training."""
    config = {**prepare(options), **work, "precision": "fp32", "lr": 1e-6}
    outcomes = measure(f"scaling-{name}", SIDES, config, options)
    return {"work": config, "sides": summary(outcomes), "figures": report(name, outcomes)}


def main() -> None:
    """Command line."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    works = (TINY_SFT, TINY_GRPO) if options.tiny else (SFT, GRPO)
    write("scaling", options, {work["work"]: run(work["work"], work, options) for work in works})


if __name__ == "__main__":
    main()
