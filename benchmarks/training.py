"""One optimiser step of each training stage on fixed data: togi against TRL's trainers at their fastest settings.

sft: chats of 50 to 400 tokens, whose answers carry loss, against SFTTrainer with packing. pretrain: documents of 100 to
700 tokens, all of which carry loss, against the same. dpo, reward, smpo: pairs with a prompt of 256 tokens and answers
of 128, against DPOTrainer (the reference pass is part of the step), RewardTrainer, and CPOTrainer as SimPO. Forward,
backward, clipping and AdamW. Both sides get as many tokens per micro-batch; TRL also runs with fewer, and speed is
relative to the faster of the two.

--check compares the gradients of the first step of both sides on the tiny model, and measures nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import (
    HERE,
    TUNED,
    Outcome,
    Side,
    console,
    failures,
    measure,
    mib,
    parser,
    prepare,
    ratio,
    show,
    spread,
    summary,
    times,
    write,
)
from machine import shapes

FEWER = "TRL, fewer tokens"
TOLERANCE = 1e-5
"""Largest difference of a gradient in step 1, relative to the largest gradient, that --check allows in fp32."""
PAIRS = {"prompt": 256, "answer": 128, "pairs": 6, "batch": 3}
TINY_PAIRS = {"prompt": 24, "answer": 12, "pairs": 4, "batch": 2}
TINY_TEXTS = {"texts": 6, "shortest": 8, "longest": 40, "row": 64, "batch": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The workload on the real and on the tiny model, TRL's smaller micro-batch, and the targets: speed relative to TRL
    in fp32 and bf16, and the share of TRL's memory above the floor."""

    full: dict[str, Any]
    tiny: dict[str, Any]
    smaller: dict[str, int]
    speed: dict[str, float]
    memory: float = 0.6

    @property
    def unit(self) -> str:
        return "pairs" if "pairs" in self.full else "tokens"


WORKS = {
    "sft": Work(
        full={"texts": 12, "shortest": 50, "longest": 400, "unscored": 0.3, "row": 2048, "batch": 1},
        tiny={**TINY_TEXTS, "unscored": 0.3},
        smaller={"row": 512},
        speed={"fp32": 1.4, "bf16": 1.7},
        memory=0.8,
    ),
    "pretrain": Work(
        full={"texts": 7, "shortest": 100, "longest": 700, "unscored": 0.0, "row": 1536, "batch": 1},
        tiny={**TINY_TEXTS, "unscored": 0.0},
        smaller={"row": 768},
        speed={"fp32": 1.3, "bf16": 1.5},
    ),
    "dpo": Work(
        full={**PAIRS, "beta": 0.1},
        tiny={**TINY_PAIRS, "beta": 0.1},
        smaller={"batch": 2},
        speed={"fp32": 1.8, "bf16": 2.0},
    ),
    "reward": Work(full=PAIRS, tiny=TINY_PAIRS, smaller={"batch": 2}, speed={"fp32": 1.5, "bf16": 1.6}),
    "smpo": Work(
        full={**PAIRS, "beta": 2.0, "gamma": 1.0},
        tiny={**TINY_PAIRS, "beta": 2.0, "gamma": 1.0},
        smaller={"batch": 2},
        speed={"fp32": 1.8, "bf16": 2.0},
    ),
}


def config_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a workload. `tokens` is togi's micro-batch: as many as in TRL's rows."""
    config = {"work": name, **(WORKS[name].tiny if options.tiny else WORKS[name].full)}
    counts = {"sft": ("texts", options.chats), "pretrain": ("texts", options.documents)}
    key, count = counts.get(name, ("pairs", options.pairs))
    config[key] = count or config[key]
    if key == "pairs":
        config["batch"] = min(options.peer_batch or config["batch"], config["pairs"])
        config["tokens"] = 2 * config["batch"] * (config["prompt"] + config["answer"])
    else:
        config["row"] = options.peer_row or config["row"]
        config["tokens"] = config["batch"] * config["row"]
    config["tokens"] = max(64, config["tokens"])
    if name == "dpo":
        config["reference"] = options.reference
    return {**config, "lr": 1e-6, "max_grad_norm": 1.0}


def sides(as_it_comes: bool, smaller: dict[str, int] | None = None) -> list[Side]:
    """Ours, TRL tuned with as many tokens a micro-batch and with fewer, and TRL as it comes."""
    found = [
        Side(name="togi", script="togi_training.py"),
        Side(name="TRL", script="trl_training.py", home="trl"),
    ]
    if smaller:
        found.append(Side(name=FEWER, script="trl_training.py", home="trl", config=smaller))
    if as_it_comes:
        config = {"as_it_comes": True, "reference": "beside"}
        rest: dict[str, Any] = {"tuned": False, "share": 0.2, "alone": True}
        found.append(Side(name="TRL as it comes", script="trl_training.py", home="trl", config=config, **rest))
    return found


# --- the bound --------------------------------------------------------------------------------------------------------


def training_gflops(precision: str, options: argparse.Namespace, model: str) -> float:
    """GFLOP/s of the model's matrix multiplications, forward and backward, in the environment of the sides."""
    env = {**os.environ, **TUNED, "OMP_NUM_THREADS": str(options.threads)}
    mode = "bf16" if precision == "bf16" else f"fp32 {options.fp32_mode}"
    command = [sys.executable, HERE / "machine.py", "--products", mode, "--threads", str(options.threads)]
    answer = subprocess.run([*command, "--model", model], env=env, check=True, capture_output=True, text=True).stdout
    return float(json.loads(answer.strip().splitlines()[-1])["training_gflops"])


def operations(config: dict[str, Any], computed: int, scored: int) -> float:
    """Necessary operations of a side: 6 per parameter and computed token, and 2 more if a reference reads it; the
    output head only for scored tokens."""
    sizes = {name: rows * columns * count for name, (rows, columns, count) in shapes(Path(config["model"])).items()}
    head = sizes.pop("head")
    each = 8.0 if config["work"] == "dpo" else 6.0
    return each * (sum(sizes.values()) * computed + head * scored)


def scored_tokens(config: dict[str, Any]) -> int:
    """Tokens that carry loss in a step."""
    if config["work"] == "reward":
        return 0
    if "pairs" in config:
        return 2 * config["pairs"] * config["answer"]
    return sum(len(ids) - first for ids, first in workloads.texts(config))


def done(config: dict[str, Any]) -> int:
    """Pairs, or tokens of the texts, of a step: the same for both sides, however many tokens they compute."""
    return config["pairs"] if "pairs" in config else sum(len(ids) for ids, _ in workloads.texts(config))


# --- the report -------------------------------------------------------------------------------------------------------


def above_floor(outcome: Outcome) -> float:
    """Peak memory above weights, gradients and optimiser."""
    return outcome.peak() - outcome.ready["floor_bytes"]


def report(title: str, config: dict[str, Any], gflops: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Prints a table; returns rates, ratios and shares."""
    work, precision = WORKS[config["work"]], config["precision"]
    peer = next((outcome for outcome in outcomes if outcome.side.name == "TRL" and outcome.rows), None)
    tuned = [outcome for outcome in outcomes if outcome.side.name in ("TRL", FEWER) and outcome.rows]
    fastest = min(tuned, key=lambda outcome: outcome.median(), default=None)
    rows, figures = [], {}
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        ours = outcome.side.name == "togi"
        speed = ratio(fastest, outcome) if fastest else None
        memory = above_floor(outcome) / above_floor(peer) if peer else None
        computed = outcome.ready["computed_tokens"]
        share = operations(config, computed, scored_tokens(config)) / 1e9 / gflops / outcome.median()
        rate = done(config) / outcome.median()
        figures[outcome.side.name] = {
            f"{work.unit}_per_second": rate,
            "speed_over_trl": speed,
            "share_of_bound": share,
            "above_floor_bytes": above_floor(outcome),
            "memory_over_trl": memory,
        }
        rows.append(
            [
                outcome.side.name,
                spread(outcome),
                f"{rate:,.3f}" if work.unit == "pairs" else f"{rate:,.1f}",
                times(speed) + (f" ({work.speed[precision]:.1f}x)" if ours else ""),
                f"{computed:,}",
                f"{share:.0%}",
                mib(outcome.peak()),
                mib(outcome.ready["floor_bytes"]),
                mib(above_floor(outcome)),
                mib(outcome.ready["libraries_bytes"]),
                times(memory) + (f" ({work.memory:.1f}x)" if ours else ""),
            ]
        )
    columns = [
        "side",
        "seconds",
        f"{work.unit}/s",
        "speed (asked)",
        "tokens",
        "of bound",
        "peak",
        "floor",
        "above it",
        "libraries",
        "of TRL's (asked)",
    ]
    show(title, columns, rows)
    failures(outcomes)
    return {"asked": {"speed": work.speed[precision], "memory": work.memory}, **figures}


def run(name: str, precision: str, options: argparse.Namespace, shared: dict[str, Any]) -> dict[str, Any]:
    """One workload in one precision."""
    config = {**shared, **config_of(name, options), "precision": precision}
    smaller = {} if options.tiny or options.peer_row or options.peer_batch else WORKS[name].smaller
    outcomes = measure(f"training-{name}-{precision}", sides(options.as_it_comes, smaller), config, options)
    sizes = ("texts", "shortest", "longest", "pairs", "prompt", "answer")
    amount = ", ".join(f"{key} {config[key]}" for key in sizes if key in config)
    gflops = options.gflops[precision]
    title = f"{name}, {precision}: {amount}, {config['tokens']} tokens a micro-batch; products {gflops:.0f} GFLOP/s"
    ratios = report(title, config, gflops, outcomes)
    return {"work": config, "training_gflops": gflops, "sides": summary(outcomes), "ratios": ratios}


# --- the check --------------------------------------------------------------------------------------------------------


def check(name: str, options: argparse.Namespace, shared: dict[str, Any]) -> bool:
    """Whether the gradients of step 1 are equal on both sides, compared before clipping, in fp32."""
    options.repeats, options.warmup = 1, 0
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for side in sides(False):
            path = f"{folder}/{side.name}.pt"
            config = {**shared, **config_of(name, options), "precision": "fp32", "gradients": path}
            outcomes = measure(f"training-{name}-check", [side], {**config, "max_grad_norm": 1e9}, options)
            failures(outcomes)
            found[side.name] = torch.load(path) if outcomes[0].rows else {}
    ours, theirs = found["togi"], found["TRL"]
    if not ours or ours.keys() != theirs.keys():
        console.print(f"{name}: [red]the sides have other gradients: {sorted(ours.keys() ^ theirs.keys())[:4]}[/red]")
        return False
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    difference = max((ours[key] - theirs[key]).abs().max().item() for key in theirs) / largest
    good = difference < TOLERANCE
    told = "same" if good else "OTHER"
    console.print(f"{name}: gradients of step 1 differ by {difference:.1e} of the largest: {told}")
    return good


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--work", nargs="+", default=list(WORKS), choices=tuple(WORKS))
    arguments.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    arguments.add_argument("--chats", type=int, help="chats of a step of sft")
    arguments.add_argument("--documents", type=int, help="documents of a step of pretrain")
    arguments.add_argument("--pairs", type=int, help="pairs of a step of dpo, reward and smpo")
    arguments.add_argument("--peer-batch", type=int, help="TRL's pairs per micro-batch, if another number is faster")
    arguments.add_argument("--peer-row", type=int, help="tokens of a row that TRL packs, if another number is faster")
    arguments.add_argument(
        "--reference", choices=("precomputed", "beside"), default="precomputed", help="TRL's method for DPO's reference"
    )
    arguments.add_argument("--as-it-comes", action="store_true", help="also TRL as it comes")
    arguments.add_argument("--check", action="store_true", help="compare gradients on the tiny model and exit")
    options = arguments.parse_args()
    options.tiny = options.tiny or options.check
    shared = prepare(options)
    if options.check:
        wrong = [name for name in options.work if not check(name, options, shared)]
        sys.exit(f"the sides do not agree: {', '.join(wrong)}" if wrong else 0)
    speeds = {p: [training_gflops(p, options, shared["model"]) for _ in range(3)] for p in options.precision}
    options.gflops = {p: max(found) for p, found in speeds.items()}  # a bound: the machine at its best
    cases: dict[str, Any] = {}
    for precision in options.precision:
        for name in options.work:
            cases[f"{name}-{precision}"] = run(name, precision, options, shared)
            write("training", options, cases)  # each time: a run that is ended early loses one work alone


sys.path.insert(0, str(HERE / "sides"))
import workloads  # noqa: E402 (the sides' own, so that both count the same)

if __name__ == "__main__":
    main()
