"""The stage `train.grpo` of the benchmarks: its settings, as in a recipe, and its prompts."""

from pathlib import Path
from typing import Any

import workloads

from togi.core.records import Message, Prompt
from togi.stages.training.grpo import TrainGrpo


def settings(config: dict[str, Any], **more: Any) -> TrainGrpo:
    """The settings of a stage that ends only when the harness requests no more repeats."""
    reward = {"type": "function", "file": str(Path(workloads.__file__)), "name": "reward_of"}
    shared = {
        "init": "$base",
        "prompts": "$prompts",
        "reward": {"terms": [reward]},
        "steps": 10_000,
        "prompts_per_step": config["groups"],
        "group_size": config["samples"],
        "sampling": {"max_tokens": config["answer"]},
        "learning_rate": config["lr"],
    }
    return TrainGrpo.model_validate({**shared, **more})


def prompts(config: dict[str, Any]) -> list[Prompt]:
    """The prompts of 64 steps."""
    texts = workloads.prompt_texts(config, 64 * config["groups"])
    return [Prompt(id=str(i), messages=(Message("user", text),)) for i, text in enumerate(texts)]
