"""A whole recipe on a random model of a few thousand weights, for tests that run togi as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import psutil
import torch
from tokenizers_made import byte_bpe
from transformers import LlamaConfig, LlamaForCausalLM

QUESTIONS = [
    "Why is the sky blue?",
    "How do cats see at night?",
    "What is a good name for a dog?",
    "Explain rain to a child.",
    "Where do rivers begin?",
    "How long is a day on the moon?",
    "What makes bread rise?",
    "Why do we dream?",
]

# The random model never writes its terminator, so the reward is a function that it can still learn from.
RECIPE = """\
name: tiny
seed: 3
models:
  base: {path: model, template: chatml}
data:
  questions: {path: questions.jsonl}
stages:
  some: {type: select, input: $questions, count: 6}
  pairs: {type: contrast, input: $some, model: $base, off_topic: true, max_tokens: 12, batch_prompts: 2, min_tokens: 1}
  reward:
    {type: train.reward, init: $base, pairs: $pairs, epochs: 2, batch_size: 2, learning_rate: 1e-3, save_every: 2}
  policy:
    type: train.grpo
    init: $base
    prompts: $some
    steps: 6
    prompts_per_step: 2
    group_size: 4
    learning_rate: 1e-3
    save_every: 2
    sampling: {max_tokens: 12}
    reward:
      gates: [{type: length, min: 1}]
      terms:
        - {type: function, file: reward.py, name: vowels}
        - {type: model, scorer: $reward, weight: 0.1}
  scores:
    type: evaluate
    base: $base
    policy: $policy
    prompts: $some
    reward: $reward
    held_out: $reward
    max_tokens: 12
    batch_prompts: 3
    bootstrap: 200
"""
REWARD = """\
def vowels(prompt, completion):
    return sum(character in "aeiou" for character in completion.text) / max(len(completion.text), 1)
"""


def tiny_model(folder: Path) -> None:
    """Saves a random Llama of 4 layers with a byte-level tokenizer into `folder`."""
    tokenizer = byte_bpe()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """Writes the recipe with everything it names into `folder`; returns its path."""
    tiny_model(folder / "model")
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    (folder / "reward.py").write_text(REWARD)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a run with this `home`: one thread, so that tests can run side by side, and the same
    arithmetic on every machine."""
    return {**os.environ, "TOGI_HOME": str(home), "TOGI_COMPUTE": "float32", "OMP_NUM_THREADS": "1", **more}


def togi(home: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command line as a user does, in a forked process."""
    command = [sys.executable, "-m", "togi", *arguments]
    return forked.run(command, env=environment(home, **more), text=True, timeout=300)


def togi_plainly(home: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Like `togi`, but in a started process, some seconds slower: forking must not hide an error of a normal start."""
    command = [sys.executable, "-m", "togi", *arguments]
    env = environment(home, **more)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)


def start(recipe: Path, home: Path, **more: str) -> "subprocess.Popen[str]":
    """Starts a run in the background; its output is captured."""
    command = [sys.executable, "-m", "togi", "run", str(recipe), "--threads", "1"]
    return forked.Popen(
        command, env=environment(home, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_plainly(recipe: Path, home: Path) -> "subprocess.Popen[str]":
    """Like `start`, but the process and its worker are started, not forked."""
    command = [sys.executable, "-m", "togi", "run", str(recipe), "--threads", "1"]
    return subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_all(run: subprocess.Popen[str]) -> None:
    """Sends SIGKILL to the worker and to its parent."""
    for process in [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]:
        process.kill()
    run.communicate()


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty if it has ended, as compilers and helper processes of Ray do at any time."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def results(home: Path) -> dict[str, Any]:
    """The results of a run: the hashes of everything it made, and its metrics without the times."""
    found: dict[str, Any] = {}
    for done in sorted((home / "store").glob("*/DONE")):
        folder = done.parent
        found[folder.name] = json.loads(done.read_text())["files"]
        metrics = folder / "metrics.jsonl"
        if metrics.exists():
            lines = [json.loads(line) for line in metrics.read_text().splitlines()]
            found[f"{folder.name}/metrics"] = [
                {key: value for key, value in line.items() if not key.startswith(("time/", "tokens_per", "memory/"))}
                for line in lines
            ]
        for name in ("samples.jsonl", "summary.json", "drops.json"):
            if (folder / name).exists():
                found[f"{folder.name}/{name}"] = (folder / name).read_text()
    return found
