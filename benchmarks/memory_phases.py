"""Peak memory of `train.grpo` by phase, predicted and measured, on the CPU: python benchmarks/memory_phases.py [FOLDER]

Runs a real recipe with `togi plan` and `togi run`, once per training method: prompts of about 100 tokens, groups of 4
answers of 32 tokens, a reward model of the same size with a random head. FOLDER is a model folder; the default is
SmolLM2-135M as converted by prepare.py. Both figures are relative to the process's size before any model is loaded; of
two processes it is the first one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import RESULTS, console, cpu_facts, prepare_model, revision, show

PHASES = ("load", "sample", "score", "update", "save")
TWO = {"processes": 2, "prompts_per_step": 4, "micro_batch_tokens": 256}  # two micro-batches for each process
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": {"lora": {"rank": 16}},
    "LoRA, checkpointing": {"lora": {"rank": 16}, "activation_checkpointing": True},
    "LoRA on NF4": {"lora": {"rank": 16, "base": "nf4"}},
    "all weights, two processes": TWO,
    "LoRA, two processes": {"lora": {"rank": 16}, **TWO},
}
GIVING_BACK = {"MALLOC_MMAP_MAX_": "1000000", "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
GIVING_BACK |= {"MALLOC_TOP_PAD_": "0"}
"""With these settings glibc returns freed memory at once, so that no phase counts memory freed by an earlier one. The
workers of `togi run` keep freed memory: there each phase has at least the peak of earlier ones, up to saving."""
POLICY = {
    "type": "train.grpo",
    "init": "$base",
    "prompts": "$asked",
    "steps": 2,
    "prompts_per_step": 1,
    "group_size": 4,
    "micro_batch_tokens": 512,
    "sampling": {"max_tokens": 32},
    "reward": {"terms": [{"type": "model", "scorer": "$rm"}]},
}
SUBJECTS = ("rivers", "clocks", "bread", "the moon", "glass", "birds", "salt", "maps")
TOGI = (sys.executable, "-m", "togi")


def recipe(folder: Path, model: Path, reward: Path, way: Mapping[str, Any]) -> Path:
    """A recipe (JSON is YAML) with its prompts."""
    rows = [{"prompt": f"Say in your own words what is known about {name}. " + f"{name} " * 50} for name in SUBJECTS]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {
        "name": "phases",
        "compute": "float32",
        "models": {"base": {"path": str(model), "template": "chatml"}, "rm": {"path": str(reward), "kind": "reward"}},
        "data": {"asked": {"path": "asked.jsonl"}},
        "stages": {"policy": {**POLICY, **way}},
    }
    path = folder / "phases.yaml"
    path.write_text(json.dumps(made))
    return path


def reward_model(model: Path, folder: Path) -> Path:
    """The model with a random scalar head, made in a separate process."""
    code = (
        "import sys, pathlib\n"
        "from togi.core.sources import ModelSource\n"
        "from togi.model.load import load\n"
        "from togi.model.reward_model import add_scalar_head\n"
        "from togi.model.save import save_model\n"
        "model, folder = map(pathlib.Path, sys.argv[1:])\n"
        "base = load(ModelSource(kind='path', name=str(model), template='chatml'), folder.parent)\n"
        "save_model(add_scalar_head(base, seed=0), folder)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(model), str(folder)], check=True)
    return folder


def measure(model: Path, reward: Path, way: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Bytes by phase, predicted and measured, of one training method."""
    with tempfile.TemporaryDirectory(prefix="togi-phases-") as name:
        folder = Path(name)
        path = recipe(folder, model, reward, way)
        env = {**os.environ, "TOGI_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **GIVING_BACK}
        planned = subprocess.run([*TOGI, "plan", path, "--json"], env=env, capture_output=True, text=True, check=True)
        (row,) = [row for row in json.loads(planned.stdout) if row["stage"] == "policy"]
        subprocess.run([*TOGI, "run", path, "--threads", "1"], env=env, capture_output=True, check=True)
        (found,) = folder.glob("home/store/train.grpo-*/memory.json")
        return {"predicted": row["estimate"]["phases"], "measured": json.loads(found.read_text())["phases"]}


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", type=Path, nargs="?", help="a model's folder; SmolLM2-135M when absent")
    arguments.add_argument("--way", nargs="+", default=list(WAYS), choices=list(WAYS))
    arguments.add_argument("--out", type=Path, default=RESULTS / "memory_phases.json")
    options = arguments.parse_args()
    model = (options.model or prepare_model()).resolve()
    found, rows = {}, []
    with tempfile.TemporaryDirectory(prefix="togi-reward-") as folder:
        reward = reward_model(model, Path(folder) / "rm")
        for way in options.way:
            found[way] = measure(model, reward, WAYS[way])
            pairs = [(found[way]["predicted"][phase], found[way]["measured"][phase]) for phase in PHASES]
            rows.append([way, *(f"{a / 1e9:.2f} / {b / 1e9:.2f} ({a / b - 1:+.0%})" for a, b in pairs)])
            console.print(rows[-1])
    show("predicted / measured GB", ["training", *PHASES], rows)
    facts = {"machine": cpu_facts(), "commit": revision(), "model": model.name, "policy": POLICY}
    options.out.write_text(json.dumps({**facts, "ways": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
