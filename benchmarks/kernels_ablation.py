"""The gain of each compiled part of togi: the time of a whole step without it over that of a step with all parts.

Updates of a GRPO group and of texts, forward and backward of two decoder layers alone, and sampling with six layers, in
fp32 and in bf16. The gain of a part in the layers alone is an upper bound of its gain in a whole step. With one thread
(the default) CPU seconds are counted, which depend less on other work of the machine; with more, wall-clock seconds. A
part that gains less than 5 % of a step everywhere is not worth its code.
"""

import argparse
import statistics
from typing import Any

from harness import Outcome, Side, cpu_facts, failures, measure, parser, prepare, show, summary, write

UPDATE_PARTS = ("softmax", "attend")
LAYER_PARTS = ("attend",)
SAMPLING_PARTS = ("decode",)
WORKS: dict[str, dict[str, Any]] = {
    "layers": {"groups": 1, "samples": 8, "prompt": 256, "answer": 64, "tokens": 1024, "layers": 2},
    "group": {"groups": 1, "samples": 8, "prompt": 256, "answer": 64, "tokens": 1024},
    "texts": {"texts": 4, "shortest": 50, "longest": 300, "unscored": 0.3, "tokens": 1500},
    "sampling": {"groups": 2, "samples": 8, "prompt": 64, "shortest": 16, "longest": 24, "layers": 6},
}
TINY: dict[str, dict[str, Any]] = {
    "layers": {"groups": 1, "samples": 2, "prompt": 24, "answer": 8, "tokens": 64, "layers": 2},
    "group": {"groups": 1, "samples": 2, "prompt": 24, "answer": 8, "tokens": 64},
    "texts": {"texts": 2, "shortest": 5, "longest": 20, "unscored": 0.3, "tokens": 64},
    "sampling": {"groups": 1, "samples": 2, "prompt": 20, "shortest": 4, "longest": 8, "layers": 2},
}
WORTH = 1.05


def parts_of(work: str, precision: str) -> list[str]:
    """The parts that a step uses."""
    if work != "sampling":
        return list(LAYER_PARTS if work == "layers" else UPDATE_PARTS)
    products = precision == "bf16" and "amx_tile" in cpu_facts()["flags"]
    return [*SAMPLING_PARTS, *(["linear"] if products else [])]


def worth(outcome: Outcome, part: str) -> list[float]:
    """For each repeat, the time without the part over the time with it."""
    return [row["pairs"][part][1] / row["pairs"][part][0] for row in outcome.rows]


def report(case: str, outcome: Outcome, parts: list[str]) -> dict[str, Any]:
    """Prints a table; returns the ratios."""
    found, rows = {}, []
    for part in parts if outcome.rows else ():
        ratios = worth(outcome, part)
        whole = statistics.median(row["pairs"][part][0] for row in outcome.rows)
        median = statistics.median(ratios)
        with_all, without = (min(row["pairs"][part][i] for row in outcome.rows) for i in (0, 1))
        found[part] = {
            "seconds": whole,
            "without_over_with": median,
            "best_without_over_best_with": without / with_all,
            "ratios": ratios,
        }
        share = f"{median:.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        rows.append([part, f"{whole:.2f}", share, f"{without / with_all:.3f}", "yes" if median >= WORTH else "no"])
    show(case, ["part", "seconds with all", "without / with", "best / best", f"worth {WORTH - 1:.0%}"], rows)
    failures([outcome])
    return found


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.set_defaults(threads=1)
    arguments.add_argument("--work", nargs="+", default=list(WORKS), choices=tuple(WORKS))
    arguments.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    arguments.add_argument("--parts", nargs="+", metavar="PART", help="measure only these")
    options: argparse.Namespace = arguments.parse_args()
    shared = prepare(options)
    cases: dict[str, Any] = {}
    for precision in options.precision:
        for work in options.work:
            parts = [part for part in parts_of(work, precision) if not options.parts or part in options.parts]
            shape = {**(TINY if options.tiny else WORKS)[work], "work": work, "parts": parts, "lr": 1e-6}
            config = {**shared, **shape, "precision": precision}
            case = f"{work}-{precision}"
            (outcome,) = measure(
                f"kernels_ablation-{case}", [Side(name="togi", script="togi_ablation.py")], config, options
            )
            cases[case] = {"work": shape, "sides": summary([outcome]), "parts": report(case, outcome, parts)}
            write("kernels_ablation", options, cases)  # each time: a run that is ended early loses one work alone


if __name__ == "__main__":
    main()
