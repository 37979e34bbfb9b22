"""The whole GRPO step, sampling, reward and update: togi against TRL's trainer, with the time of each phase.

4 prompts x 8 samples, prompts of about 256 tokens, answers of 64, a reward that costs nothing. Both sides generate
answers of full length.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from harness import Outcome, Side, failures, measure, mib, parser, prepare, ratio, show, spread, summary, times, write

FULL = {"groups": 4, "samples": 8, "words": 256, "answer": 64, "batch": 8, "tokens": 2560}
TINY = {"groups": 2, "samples": 4, "words": 6, "answer": 8, "batch": 4, "tokens": 256}
PHASES = ("sample", "reward", "prepare", "update")
SIDES = (
    Side(name="togi", script="togi_step.py"),
    Side(name="TRL", script="trl_step.py", home="trl"),
)


def report(precision: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Prints a table; returns the phases and TRL's time over ours."""
    by_name = {outcome.side.name: outcome for outcome in outcomes}
    rows, figures = [], {}
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        keys = [f"{phase}_seconds" for phase in PHASES]
        phases = [outcome.median(key) if key in outcome.rows[0] else 0.0 for key in keys]
        speed = ratio(by_name["TRL"], outcome) if "TRL" in by_name else None
        figures[outcome.side.name] = {**dict(zip(PHASES, phases, strict=True)), "speed_over_trl": speed}
        prompt = f"{outcome.ready['mean_prompt_tokens']:.0f}"
        cells = [f"{seconds:.2f}" for seconds in phases]
        rows.append([outcome.side.name, spread(outcome), times(speed), *cells, prompt, mib(outcome.peak())])
    show(f"GRPO step, {precision}", ["side", "seconds", "speed", *PHASES, "prompt tokens", "peak"], rows)
    failures(outcomes)
    return figures


def run(precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """One precision."""
    config = {**prepare(options), **(TINY if options.tiny else FULL), "precision": precision, "lr": 1e-6}
    config["groups"] = options.groups or config["groups"]
    outcomes = measure(f"grpo_step-{precision}", SIDES, config, options)
    return {"work": config, "sides": summary(outcomes), "phases": report(precision, outcomes)}


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--precision", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
    arguments.add_argument("--groups", type=int, help="fewer groups than 4, if a precision is slow")
    options = arguments.parse_args()
    write("grpo_step", options, {precision: run(precision, options) for precision in options.precision})


if __name__ == "__main__":
    main()
