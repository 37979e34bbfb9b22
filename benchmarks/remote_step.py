"""A GRPO step whose policy is sampled on a server (synchronously, one batch ahead) or by the embedded engine.

The stage `train.grpo` itself, with one thread for the trainer and one for `togi serve --updates`, each on its own core;
the embedded engine has the trainer's core, and then both. Publication by disk, probes and stored samples are included.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from harness import Outcome, Side, failures, measure, mib, parser, prepare, ratio, show, spread, summary, times, write

FULL = {"groups": 2, "samples": 8, "words": 64, "answer": 32, "lr": 1e-5}
TINY = {"groups": 2, "samples": 4, "words": 6, "answer": 8, "lr": 1e-4}
PHASES = ("publish", "sample", "update")
DISTANCE = ("sampler_kl", "sampler_weight/max", "sampler_outside")
BASELINE = "server"


def sides(cores: Sequence[int]) -> list[Side]:
    """The trainer's core is the first, the server's the last."""
    return [
        _side("embedded, 1 core"),
        _side(f"embedded, {len(cores)} cores", cores=cores),
        _side(BASELINE, server=cores[-1:]),
        _side(f"{BASELINE}, staleness 1", server=cores[-1:], staleness=1),
    ]


def _side(name: str, **config: Any) -> Side:
    return Side(name=name, script="togi_remote.py", config={"cores": [], "server": [], "staleness": 0, **config})


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Prints two tables; returns, for each side, its phases, the share of its time that it waits for the server, and
    the difference between sampler and trainer."""
    base = next((outcome for outcome in outcomes if outcome.side.name == BASELINE), None)
    figures: dict[str, Any] = {}
    steps, apart = [], []
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        name = outcome.side.name
        speed = ratio(base, outcome) if base else None
        waiting = outcome.median("waiting") / outcome.median()
        phases = {phase: outcome.median(f"{phase}_seconds") for phase in PHASES}
        distance = {key: outcome.median(key) for key in DISTANCE}
        figures[name] = {"speed_over_server": speed, "waiting_share": waiting, **phases, **distance}
        cells = [f"{seconds:.2f}" for seconds in phases.values()]
        tokens = f"{outcome.median('answer_tokens'):.0f}"
        steps.append([name, spread(outcome), times(speed), f"{waiting:.0%}", *cells, tokens, mib(outcome.peak())])
        apart.append([name, *(f"{value:.3g}" for value in distance.values())])
    show("GRPO step", ["side", "seconds", "speed", "waits", *PHASES, "answer tokens", "trainer's peak"], steps)
    show("sampler and trainer", ["side", "KL, nats a token", "largest weight", "share outside"], apart)
    failures(outcomes)
    return figures


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All sides."""
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    config = {**prepare(options), **(TINY if options.tiny else FULL)}
    outcomes = measure("remote_step", sides(cores), config, options)
    return {"work": config, "cores": cores, "sides": summary(outcomes), "figures": report(outcomes)}


def main() -> None:
    """Command line."""
    arguments = parser((__doc__ or "").splitlines()[0])
    arguments.add_argument(
        "--cores", type=int, default=2, help="cores: the trainer's is the first, the server's the last"
    )
    arguments.set_defaults(threads=1, repeats=3, fp32_mode="default")
    options = arguments.parse_args()
    write("remote_step", options, {"fp32": run(options)})


if __name__ == "__main__":
    main()
