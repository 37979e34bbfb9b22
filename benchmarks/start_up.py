"""Time to the first step and memory of a training on many pairs: python benchmarks/start_up.py

Each side runs a recipe of one DPO step on a random model, from its own source tree: this one, which reads tokens made
once, and an earlier revision, which made them in memory at every start (`--before`, checked out into a temporary
folder). `first` begins with an empty store; `again` is another stage on the same pairs. The pairs are imported
beforehand. Seconds are those of the stage, including loading and saving the tiny model; peaks are the largest resident
size of its process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import HERE, RESULTS, cpu_facts, revision
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEFORE = "675eb6b"
RECIPE = """\
name: start-up
models: {base: {path: model, template: chatml}}
data: {pairs: {path: pairs.jsonl}}
stages:
  first: {type: train.dpo, init: $base, pairs: $pairs, steps: 1, batch_size: 16}
  again: {type: train.dpo, init: $base, pairs: $pairs, steps: 1, batch_size: 16, learning_rate: 1.0e-5}
"""
WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "on",
    "for",
    "with",
    "as",
    "by",
    "from",
    "that",
    "this",
    "river",
    "stone",
    "bread",
    "light",
    "door",
    "garden",
    "winter",
]
PEAK = """\
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


def prepare(folder: Path, pairs: int) -> None:
    """A tiny random model whose words are tokens, and pairs of two answers of 60 words."""
    words = [*WORDS, *map(str, range(10)), "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "\n"]
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<|im_end|>")
    tokenizer.save_pretrained(folder / "model")
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    with (folder / "pairs.jsonl").open("w") as out:
        for number in range(pairs):
            sides = [
                " ".join(WORDS[(number * step + word * step) % len(WORDS)] for word in range(60)) for step in (3, 7)
            ]
            out.write(json.dumps({"prompt": f"the river {number}", "chosen": sides[0], "rejected": sides[1]}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)


def togi(tree: Path, home: Path, *words: str) -> tuple[float, int]:
    """Seconds and peak bytes of a togi command from the source tree `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "TOGI_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, sys.executable, "-m", "togi", *words]
    began = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return time.perf_counter() - began, int(ended.stdout.split()[-1])


def measure(tree: Path, folder: Path, home: Path) -> dict[str, dict[str, float]]:
    """Seconds and peak of both stages."""
    recipe = str(folder / "recipe.yaml")
    togi(tree, home, "run", recipe, "--until", "pairs")
    found = {}
    for stage in ("first", "again"):
        seconds, peak = togi(tree, home, "run", recipe, "--until", stage)
        found[stage] = {"seconds": seconds, "peak": peak}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--before", default=BEFORE, help="the revision to compare with")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        before = folder / "before"
        git = ["git", "-C", str(HERE.parent), "worktree"]
        subprocess.run([*git, "add", "--detach", str(before), given.before], check=True, capture_output=True)
        try:
            prepare(folder, given.pairs)
            trees = {"in memory at every start": before, "tokens made once": HERE.parent}
            found = {name: measure(tree, folder, folder / f"home-{tree.name}") for name, tree in trees.items()}
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True, capture_output=True)
    tell(found, given.pairs)
    facts: dict[str, Any] = {"pairs": given.pairs, "before": given.before, "commit": revision(), **cpu_facts()}
    (RESULTS / "start_up.json").write_text(json.dumps({**facts, "sides": found}, indent=1) + "\n")


def tell(found: dict[str, dict[str, dict[str, float]]], pairs: int) -> None:
    """The table."""
    table = Table("", "first, s", "again, s", "peak first, MB", "peak again, MB", title=f"one step on {pairs:,} pairs")
    for name, stages in found.items():
        seconds = [f"{stages[stage]['seconds']:.1f}" for stage in ("first", "again")]
        peaks = [f"{stages[stage]['peak'] / 1e6:,.0f}" for stage in ("first", "again")]
        table.add_row(name, *seconds, *peaks)
    Console().print(table)


if __name__ == "__main__":
    main()
