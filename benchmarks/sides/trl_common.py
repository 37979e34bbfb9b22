"""TRL's trainers in the benchmarks: their own loops and steps, stopped between steps for the harness.

The trainers are unchanged; subclasses only time their methods, or pass in a prepared batch instead of generating one.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from side import DTYPES, Side
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig

MANY_STEPS = 10_000


def settings(config: dict[str, Any], micro_batches: int, **more: Any) -> dict[str, Any]:
    """The settings of any of its trainers at their fastest: no activation checkpointing, no logging, no saving.

    `as_it_comes` leaves activation checkpointing as the library has it.
    """
    if not config.get("as_it_comes"):
        more["gradient_checkpointing"] = False
    return {
        "output_dir": tempfile.mkdtemp(prefix="bench-trl-"),
        "use_cpu": config.get("device", "cpu") == "cpu",
        "bf16": config["precision"] == "bf16",
        "seed": config["seed"],
        "max_steps": MANY_STEPS,
        "per_device_train_batch_size": config["batch"],
        "gradient_accumulation_steps": micro_batches,
        "learning_rate": config["lr"],
        "max_grad_norm": config.get("max_grad_norm", 1.0),
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **more,
    }


def arguments(config: dict[str, Any], **more: Any) -> GRPOConfig:
    """The settings of GRPO, without a reference model."""
    rows = config["groups"] * config["samples"]
    return GRPOConfig(
        num_generations=config["samples"],
        max_completion_length=config["answer"],
        temperature=1.0,
        **settings(config, rows // config["batch"], **more),
    )


def load(config: dict[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer."""
    dtype, more = DTYPES[config["precision"]], config.get("load", {})
    net = AutoModelForCausalLM.from_pretrained(config["model"], dtype=dtype, **more)
    return net, AutoTokenizer.from_pretrained(config["model"])


def prompts(texts: list[str]) -> Dataset:
    """A data set long enough for any number of steps."""
    return Dataset.from_list([{"prompt": text} for text in texts])


def floor_bytes(net: torch.nn.Module) -> int:
    """Weights, gradients and the two moments of AdamW, all in the type of the weights."""
    return sum(4 * p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)


class Controlled(TrainerCallback):
    """Lets the trainer take one step, from the batch to the zeroed gradients, each time the harness asks."""

    def __init__(self, side: Side, phases: dict[str, float], **facts: Any) -> None:
        self.side = side
        self.phases = phases
        self.facts = facts
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.side.ready(**self.facts)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.side.wait():
            raise SystemExit(0)
        self.phases.clear()
        self.started = self.side.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = self.side.clock() - self.started
        phases = dict(self.phases)
        if phases:
            phases["update"] = seconds - sum(phases.values())
        self.side.report(seconds, **{f"{name}_seconds": value for name, value in phases.items()})
