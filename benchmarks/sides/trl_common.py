"""TRL's GRPOTrainer as the benchmarks drive it: its own loop and its own step, stopped between steps for the harness.

Nothing in the trainer is changed; subclasses time its methods, or hand it a prepared batch in place of generation.
"""

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from side import DTYPES, Side
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig

MANY_STEPS = 10_000


def arguments(config: dict[str, Any], **more: Any) -> GRPOConfig:
    """The trainer's fastest settings: no activation checkpointing, no reference model, no logging, no saving.

    `as_it_comes` leaves activation checkpointing as the library has it.
    """
    rows = config["groups"] * config["samples"]
    if not config.get("as_it_comes"):
        more["gradient_checkpointing"] = False
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-trl-"),
        use_cpu=True,
        bf16=config["precision"] == "bf16",
        seed=config["seed"],
        max_steps=MANY_STEPS,
        num_generations=config["samples"],
        per_device_train_batch_size=config["batch"],
        gradient_accumulation_steps=rows // config["batch"],
        max_completion_length=config["answer"],
        temperature=1.0,
        learning_rate=config["lr"],
        lr_scheduler_type="constant",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )


def load(config: dict[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer."""
    net = AutoModelForCausalLM.from_pretrained(config["model"], dtype=DTYPES[config["precision"]])
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
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self.started
        phases = dict(self.phases)
        if phases:
            phases["update"] = seconds - sum(phases.values())
        self.side.report(seconds, **{f"{name}_seconds": value for name, value in phases.items()})
