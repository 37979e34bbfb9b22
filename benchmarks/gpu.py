"""SFT, DPO and GRPO updates of a random model of 1.9 billion weights on one GPU: togi against TRL at its fastest.

    python benchmarks/gpu.py                        within 8 minutes; about 60 GB of the GPU's memory
    python benchmarks/gpu.py --tiny --device cpu    a quick test that everything runs
    python benchmarks/gpu.py --large                one GRPO step of a 13B model in 32 GB, within 4 minutes
    python benchmarks/gpu.py --large --tiny --device cpu

bf16 compute over fp32 weights, no activation checkpointing, as many tokens per micro-batch on both sides. MFU is the
number of necessary operations, 6 per parameter and token (the output head only for scored tokens; 2 more for DPO's
reference), over --peak-tflops.

--large makes random weights with the shape of llm-jp-3-13b on the card, in 4 bits (NF4), and does a whole GRPO step
with an adapter: 8 answers of 1,024 tokens to a prompt of about the same length. PyTorch is limited to 32 GB of the
card. The peaks of the phases are shown next to those that `togi plan` computes.

This program has not been run on CUDA yet, only with --tiny --device cpu.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from harness import (
    CACHE,
    HERE,
    Outcome,
    Side,
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
from training import operations, scored_tokens

from togi.model.sizes import Job, Shape
from togi.stages.training.phases import Rollouts, by_phase

PREFERENCES = {"prompt": 512, "answer": 512, "pairs": 16, "batch": 4, "beta": 0.1, "reference": "precomputed"}
GROUPS = {"groups": 8, "samples": 8, "prompt": 512, "answer": 512, "batch": 8}
CHATS = {"texts": 48, "shortest": 200, "longest": 2000, "unscored": 0.3, "row": 4096, "batch": 2}
FULL = {"sft": CHATS, "dpo": PREFERENCES, "grpo": GROUPS}
TINY = {
    "sft": {**CHATS, "texts": 6, "shortest": 8, "longest": 40, "row": 64, "batch": 1},
    "dpo": {**PREFERENCES, "prompt": 24, "answer": 12, "pairs": 4, "batch": 2},
    "grpo": {"groups": 2, "samples": 4, "prompt": 24, "answer": 8, "batch": 4},
}
LARGE = {
    "shape": {
        "vocab_size": 99_487,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    **{"samples": 8, "words": 300, "letters": 1000, "answer": 1024, "tokens": 4096, "keys": 7.0, "cap": 32e9},
}
SMALL = {
    **LARGE,
    "shape": {
        **LARGE["shape"],
        **{"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2},
    },
    **{"words": 20, "letters": 40, "answer": 40, "tokens": 512},
}
SCRIPTS = {"sft": "training.py", "dpo": "training.py", "grpo": "update.py"}


def config_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a workload; `tokens` is togi's micro-batch."""
    config: dict[str, Any] = dict((TINY if options.tiny else FULL)[name])
    answers = {"sft": 0, "dpo": 2, "grpo": 1}[name]
    row = config["row"] if name == "sft" else answers * (config["prompt"] + config["answer"])
    rest = {"work": name, "precision": "bf16", "device": options.device, "lr": 1e-6, "max_grad_norm": 1.0}
    return {**config, **rest, "tokens": max(64, config["batch"] * row)}


def sides(name: str, options: argparse.Namespace) -> list[Side]:
    """Ours and TRL, one after the other: they share the GPU's memory."""
    load = {"load": {"attn_implementation": options.peer_attention}}
    return [
        Side(name="togi", script=f"togi_{SCRIPTS[name]}", alone=True),
        Side(name="TRL", script=f"trl_{SCRIPTS[name]}", home="trl", config=load, alone=True),
    ]


def answered(config: dict[str, Any]) -> int:
    """Tokens that carry loss in a step: the same for both sides."""
    if config["work"] == "grpo":
        return config["groups"] * config["samples"] * config["answer"]
    return scored_tokens(config)


def lines(name: str, config: dict[str, Any], outcomes: Sequence[Outcome], peak: float) -> list[list[str]]:
    """The table rows of a workload."""
    peer = next((outcome for outcome in outcomes if outcome.side.name == "TRL" and outcome.rows), None)
    rows = []
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        share = operations(config, outcome.ready["computed_tokens"], answered(config)) / 1e12 / outcome.median() / peak
        rows.append(
            [
                f"{name}, {outcome.side.name}",
                spread(outcome),
                f"{answered(config) / outcome.median():,.0f}",
                f"{share:.1%}",
                mib(outcome.peak()),
                times(ratio(peer, outcome) if peer else None),
                times(outcome.peak() / peer.peak() if peer else None),
            ]
        )
    return rows


def large(options: argparse.Namespace) -> None:
    """One GRPO step of a model that fills the card, with measured and computed peaks by phase."""
    options.repeats, options.warmup, options.model = 1, 0, CACHE / "tiny"  # for its tokenizer: a byte is a token
    if not (options.model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "prepare.py", "--tiny"], check=True)
    rest = {"work": "grpo", "precision": "bf16", "device": options.device, "lr": 1e-6}
    config = {**prepare(options), **(SMALL if options.tiny else LARGE), **rest}
    outcomes = measure("gpu-large", [Side(name="togi", script="togi_large.py", alone=True)], config, options)
    failures(outcomes)
    for outcome in (outcome for outcome in outcomes if outcome.rows):
        (row,), expected = outcome.rows, _expected(config)
        pairs = [(expected[phase], row["phases"][phase]) for phase in row["phases"]]
        cells = [f"{computed / 1e9:.3g} / {found / 1e9:.3g}" for computed, found in pairs]
        title = f"GRPO step of {outcome.ready['weights']:,} numbers: {row['seconds']:.1f} s; GB computed / measured"
        show(title, ["side", *row["phases"]], [["togi", *cells]])
        write("gpu-large", options, {"grpo": {"work": config, "computed": expected, "sides": summary(outcomes)}})


def _expected(config: dict[str, Any]) -> dict[str, float]:
    """Bytes by phase, as `togi plan` computes them."""
    shape, card = Shape.of({"model_type": "llama", **config["shape"]}), config["device"] == "cuda"
    job = Job(weights="nf4", rank=16, compute_dtype="bfloat16", checkpointing=True, entropy=True, accelerator=card)
    sizes = {"rows": config["samples"], "group": config["samples"], "answer": config["answer"]}
    rollouts = Rollouts(**sizes, prompt=config["letters"], bound=config["keys"] * 1e9)
    return by_phase(shape, job, rollouts, tokens=config["tokens"], copies=0.0, graders=())


def main() -> None:
    """Command line."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--work", nargs="+", default=list(FULL), choices=tuple(FULL))
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments.add_argument("--peer-attention", default="sdpa", help="TRL's attention; flash_attention_2 if installed")
    arguments.add_argument(
        "--peak-tflops", type=float, default=989.0, help="of the GPU in dense bf16 (H100, H200: 989)"
    )
    arguments.add_argument("--large", action="store_true", help="one GRPO step of a 13B model alone, in 32 GB")
    arguments.set_defaults(repeats=3, warmup=2, threads=8, fp32_mode="default")
    options = arguments.parse_args()
    if options.large:
        large(options)
        return
    if not options.tiny and options.model is None:
        options.model = CACHE / "gpu"
        if not (options.model / "config.json").exists():
            subprocess.run([sys.executable, HERE / "prepare.py", "--gpu"], check=True)
    shared = prepare(options)
    cases, rows = {}, []
    for name in options.work:
        config = {**shared, **config_of(name, options)}
        outcomes = measure(f"gpu-{name}", sides(name, options), config, options)
        failures(outcomes)
        rows += lines(name, config, outcomes, options.peak_tflops)
        cases[name] = {"work": config, "sides": summary(outcomes)}
    columns = ["work, side", "seconds", "scored tokens/s", "MFU", "peak memory", "speed", "memory"]
    show("training on one GPU; speed and memory against TRL", columns, rows)
    write("gpu", options, cases, peak_tflops=options.peak_tflops)


if __name__ == "__main__":
    main()
