"""Preference pairs for the tiny model of tiny_run, a recipe that learns from them in two rounds, and a bare context."""

import json
from pathlib import Path
from typing import Any

from tiny_run import QUESTIONS, tiny_model

from togi.core.codec import write_records
from togi.core.records import Message, Pair
from togi.core.settings import ModelRef, PairsRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved

RECIPE = """\
name: tiny
seed: 3
models:
  base: {path: model, template: chatml}
data:
  preferences: {path: pairs.jsonl}
stages:
  first: {type: train.dpo, init: $base, pairs: $preferences, batch_size: 3, epochs: 2, learning_rate: 3e-3,
          save_every: 2, validation: 0.3, evaluate_every: 2, micro_batch_tokens: 256}
  second: {type: train.dpo, init: $first, pairs: $preferences, batch_size: 3, learning_rate: 3e-4, save_every: 1,
           loss: sigmoid_norm, sft_weight: 0.1, micro_batch_tokens: 256}
  lora_first: {type: train.dpo, init: $base, pairs: $preferences, batch_size: 3, learning_rate: 3e-2, save_every: 2,
               lora: {rank: 4, alpha: 8}, micro_batch_tokens: 256}
  lora_second: {type: train.dpo, init: $lora_first, pairs: $preferences, batch_size: 3, learning_rate: 3e-3,
                save_every: 2, lora: {rank: 4, alpha: 8}, micro_batch_tokens: 256}
  margin: {type: train.smpo, init: $base, pairs: $preferences, batch_size: 3, learning_rate: 3e-3, save_every: 2,
           validation: 0.3, micro_batch_tokens: 256}
"""


def rows() -> list[dict[str, str]]:
    """One pair per question: a short answer against a long one, so that the sides differ in length."""
    good = [
        "Because of light.",
        "With big eyes.",
        "Rex.",
        "Water falls.",
        "In hills.",
        "29 days.",
        "Yeast.",
        "To rest.",
    ]
    return [
        {"prompt": question, "chosen": answer, "rejected": f"I do not know {number} times, {answer.lower()[:4]}"}
        for number, (question, answer) in enumerate(zip(QUESTIONS, good, strict=True))
    ]


def pair(prompt: Any, chosen: Any, rejected: Any, name: str = "p0") -> Pair:
    """A pair from texts, or from lists of (role, text)."""
    sides = [
        tuple(Message(*turn) for turn in ([(role, said)] if isinstance(said, str) else said))
        for role, said in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    ]
    return Pair(id=name, prompt=sides[0], chosen=sides[1], rejected=sides[2])


def pairs() -> list[Pair]:
    return [pair(row["prompt"], row["chosen"], row["rejected"], f"p{i}") for i, row in enumerate(rows())]


def write_preferences(folder: Path, text: str = RECIPE) -> Path:
    """Writes the recipe with its model and pairs into `folder`; returns its path."""
    tiny_model(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def bare_context(folder: Path, records: list[Pair], template: str = "chatml") -> Context:
    """A stage's context in `folder` without a run; $base is the tiny model, $pairs are `records`."""
    if not (folder / "model").exists():
        tiny_model(folder / "model")
    write_records(folder / "given" / RECORDS_FILE, "pairs", records)
    (folder / "stage").mkdir(exist_ok=True)
    source = ModelSource(kind="path", name=str(folder / "model"), template=template)
    inputs = {
        ModelRef("$base"): Resolved("model", source=source),
        PairsRef("$pairs"): Resolved("pairs", folder=folder / "given"),
    }
    return Context(
        name="learn",
        folder=folder / "stage",
        cache=folder / "cache",
        seed=5,
        inputs=dict(inputs),
        control=Control(send=lambda event: None),
        compute="float32",
    )


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
