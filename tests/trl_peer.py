"""Trains with TRL's own trainers the cases that tests/train/test_parity_trl.py trains with togi, in a separate process:
importing TRL changes other libraries.

    python trl_peer.py FOLDER

FOLDER/cases.json holds the cases, FOLDER/KIND.pt the weights they start from. It writes CASE.plain.pt, from the trainer
as it is, and CASE.wide.pt, computed in float64 also where TRL and transformers round to fp32 internally: losses of the
steps, gradients of the first step, weights after the last.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tiny import BYTES, CONFIGS, SHAPE, TrueFloat64, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback
from trl.kernels import ChunkedLogProbFunction

LIBRARY = {"sft": AutoModelForCausalLM, "dpo": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
TRAINER = {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer, "reward": trl.RewardTrainer}
SETTINGS = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig}
PLAIN = {
    "max_steps": 5,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "train_sampling_strategy": "sequential",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "max_length": None,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


class Wide(TrueFloat64):
    """Also makes the buffers float64 that TRL's output head always allocates in fp32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.zeros, torch.full) and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def wide() -> Iterator[None]:
    """Applies `Wide`, also in the backward of TRL's output head, which autograd runs outside of any mode."""
    backward = ChunkedLogProbFunction.backward

    def wide_backward(*args: Any) -> Any:
        with Wide():
            return backward(*args)

    ChunkedLogProbFunction.backward = staticmethod(wide_backward)
    with Wide():
        yield
    ChunkedLogProbFunction.backward = staticmethod(backward)


class FirstGradients(TrainerCallback):
    """Keeps the gradients that the first optimiser step reads."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.found = {name: p.grad.clone() for name, p in kwargs["model"].named_parameters()}


def start(folder: Path, kind: str) -> torch.nn.Module:
    config_class, extra = CONFIGS["llama"]
    config = config_class(**{**SHAPE, **extra, "vocab_size": BYTES, "num_labels": 1})
    net = LIBRARY[kind].from_config(config, attn_implementation="eager", dtype=torch.float64)
    net.load_state_dict(torch.load(folder / f"{kind}.pt"))
    return net


def train(folder: Path, case: dict, precision: AbstractContextManager) -> dict:
    kind = case["kind"]
    net = start(folder, kind)
    gradients = FirstGradients()
    more = {"ref_model": deepcopy(net)} if kind == "dpo" else {}
    trainer = TRAINER[kind](
        model=net,
        args=SETTINGS[kind](output_dir=str(folder / "trl"), **PLAIN, **case["peer"]),
        train_dataset=Dataset.from_list(case["rows"]),
        processing_class=tiny_tokenizer(),
        callbacks=[gradients],
        **more,
    )
    with precision:
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "gradients": gradients.found, "weights": dict(trainer.model.state_dict())}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        torch.save(train(folder, case, nullcontext()), folder / f"{name}.plain.pt")
        torch.save(train(folder, case, wide()), folder / f"{name}.wide.pt")
