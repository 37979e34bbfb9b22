"""Shared by togi's sides: the policy as the stages load it, and the workload as groups of sequences."""

from collections.abc import Callable
from typing import Any

import torch
import workloads
from side import DTYPES
from transformers import AutoModelForCausalLM

from togi.model.forest import Forest, Sequence, move
from togi.model.policy import Policy
from togi.objectives.base import Output
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained
from togi.train.precision import in_bfloat16


def load(config: dict[str, Any]) -> Policy:
    """The model on its device, ready for forests."""
    net = AutoModelForCausalLM.from_pretrained(config["model"], dtype=DTYPES[config["precision"]])
    return Policy(net.to(config.get("device", "cpu")))


def in_precision(forward: Callable[[Forest], Output], config: dict[str, Any]) -> Callable[[Forest], Output]:
    """`forward`, in bf16 over fp32 weights if that precision is requested, like the peer."""
    return in_bfloat16(forward, config.get("device", "cpu")) if config["precision"] == "bf16" else forward


def forward(policy: Policy, config: dict[str, Any]) -> Callable[[Forest], Output]:
    """Log-probabilities and entropy, which TRL computes as well."""

    def plain(forest: Forest) -> Output:
        found = policy(move(forest, config.get("device", "cpu")), entropy=True)
        return Output(logp_N=found.logp_N, entropy_N=found.entropy_N)

    return in_precision(plain, config)


def update(net: torch.nn.Module, config: dict[str, Any]) -> Update:
    """AdamW at a constant rate with the gradient clipped at 1, as in TRL."""
    optimizer = build_adamw(trained(net.named_parameters()), AdamWSettings(learning_rate=config["lr"]))
    return Update(optimizer=optimizer, schedule=Schedule(), max_grad_norm=1.0)


def sequences(config: dict[str, Any]) -> list[list[Sequence]]:
    """The prepared batch as groups; the answers are scored."""
    return [
        [Sequence(tuple(prompt + answer), (False,) * len(prompt) + (True,) * len(answer)) for answer in answers]
        for prompt, answers in workloads.groups(config)
    ]


def floor_bytes(net: torch.nn.Module) -> int:
    """Weights, gradients and the two moments of AdamW, all in the type of the weights."""
    return sum(4 * p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)
