"""Optimiser steps of the training stages by togi: the stage's own task, micro-batches, loop and update.

Each step is a whole step of `fit`, including its line of metrics; the source of examples waits for the harness and
returns the same ones every time. Checkpoints are left out.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import togi_common
import torch
import workloads
from side import Side, keep_first_gradients, versions

from togi.core.sources import ModelSource
from togi.model.forest import Sequence as TokenSequence
from togi.model.load import LoadedModel, load
from togi.model.reward_model import add_scalar_head
from togi.stages.arithmetic import arithmetic
from togi.stages.context import Context, Control
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.dpo_work import DpoTask
from togi.stages.training.examples_work import Data, Example
from togi.stages.training.fit_work import Task, fit
from togi.stages.training.optimisation import Optimisation
from togi.stages.training.pretrain import TrainPretrain
from togi.stages.training.pretrain_work import PretrainTask, Windows
from togi.stages.training.reference_work import with_reference
from togi.stages.training.reward import TrainReward
from togi.stages.training.reward_work import RewardTask
from togi.stages.training.sft import TrainSft
from togi.stages.training.sft_work import SftTask
from togi.stages.training.smpo import TrainSmpo
from togi.stages.training.smpo_work import SmpoTask

MANY_STEPS = 10_000
COMPUTE = {"fp32": "float32", "bf16": "bfloat16"}


class Asked:
    """A source that returns the same examples for each step that the harness requests. The clock starts here."""

    total_steps = MANY_STEPS

    def __init__(self, task: "Timed") -> None:
        self.task = task

    def take(self, step: int) -> Sequence[Example]:
        if not self.task.side.wait():
            raise SystemExit(0)
        self.task.started = self.task.side.clock()
        return self.task.prepared()

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Keeps nothing."""


class Timed(Task[Any]):
    """Shared by all tasks: examples on request, and a report after each step."""

    side: Side
    started: float

    def source(self, settings: Any, seed: int) -> Asked:
        return Asked(self)

    def prepared(self) -> Sequence[Example]:
        """The examples of the step."""
        return self.data.training

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        super().observe(step, metrics)
        self.side.report(self.side.clock() - self.started)


class Sft(Timed, SftTask):
    """Chats."""


class Pretrain(Timed, PretrainTask):
    """Documents, which are windows already."""

    def longest(self) -> int:
        return max(self.size(example) for example in self.data.training)


class Reward(Timed, RewardTask):
    """Pairs for a scalar head."""


class Smpo(Timed, SmpoTask):
    """Pairs without a reference."""


class Dpo(Timed, DpoTask):
    """Pairs; every step begins with the reference pass, which a recipe makes once for all its pairs."""

    def prepared(self) -> Sequence[Example]:
        context = replace(self.context, folder=Path(tempfile.mkdtemp(prefix="bench-reference-")))
        return with_reference(context, self, self.settings.tokens_at_once).training


# --- the stages as a recipe would have them ---------------------------------------------------------------------------


def settings(config: dict[str, Any]) -> Optimisation:
    """The settings of the stage."""
    shared: dict[str, Any] = {
        "init": "$base",
        "learning_rate": config["lr"],
        "schedule": "constant",
        "weight_decay": 0.0,
        "betas": (0.9, 0.999),
        "max_grad_norm": config["max_grad_norm"],
        "micro_batch_tokens": config["tokens"],
        "save_every": MANY_STEPS,
        "validation": None,
    }
    pairs = {**shared, "pairs": "$pairs"}
    match config["work"]:
        case "sft":
            return TrainSft.model_validate({**shared, "chats": "$chats"})
        case "pretrain":
            source = {"documents": "$texts"}
            return TrainPretrain.model_validate({**shared, "sources": [source], "steps": MANY_STEPS})
        case "reward":
            return TrainReward.model_validate({**pairs, "centring": 0.0})
        case "dpo":
            return TrainDpo.model_validate({**pairs, "beta": config["beta"]})
        case "smpo":  # SimPO with the cross entropy of the chosen answers
            margin = {"beta": config["beta"], "target_margin": config["gamma"] / config["beta"]}
            shape = {"loss": "sigmoid", "margin_schedule": "constant", "chosen_sft_ratio": 1.0, "sft_weight": 1.0}
            return TrainSmpo.model_validate({**pairs, **margin, **shape})
    raise LookupError(config["work"])


def examples(config: dict[str, Any]) -> list[Example]:
    """The prepared workload in the form that the stage makes from records; a reward model scores no tokens."""
    if "texts" in config:
        groups = [[(ids, first)] for ids, first in workloads.texts(config)]
    else:
        scored = config["work"] != "reward"
        groups = [
            [(prompt + answer, len(prompt) if scored else len(prompt) + len(answer)) for answer in (chosen, rejected)]
            for prompt, chosen, rejected in workloads.pairs(config)
        ]
    return [
        Example(
            id=str(number),
            prompt=number,
            group=tuple(
                TokenSequence(tuple(ids), (False,) * first + (True,) * (len(ids) - first)) for ids, first in group
            ),
        )
        for number, group in enumerate(groups)
    ]


def task_of(config: dict[str, Any], wanted: Any, context: Context, model: LoadedModel) -> tuple[LoadedModel, Timed]:
    """The trained model, and its task on the prepared workload."""
    data = Data(examples(config))
    match config["work"]:
        case "sft":
            return model, Sft(wanted, data, model)
        case "pretrain":
            return model, Pretrain(wanted, {"texts": []}, Windows.of(wanted, context, model), model, data)
        case "dpo":
            return model, Dpo(wanted, context, model, data)
        case "smpo":
            return model, Smpo(wanted, context, model, data)
    scorer = add_scalar_head(model, seed=config["seed"])
    head: Any = scorer.net.score
    with torch.no_grad():
        head.weight.copy_(torch.tensor([workloads.head_weights(config["seed"], head.in_features)]))
    return scorer, Reward(wanted, data, scorer, {})


def main() -> None:
    side = Side()
    config = side.config
    folder = Path(tempfile.mkdtemp(prefix="bench-togi-"))
    context = Context(
        name=config["work"],
        folder=folder,
        cache=folder,
        seed=config["seed"],
        inputs={},
        control=Control(send=lambda event: None),
        compute=COMPUTE[config["precision"]],
    )
    arithmetic(context)
    source = ModelSource(kind="path", name=config["model"], template="chatml")
    model, task = task_of(config, wanted := settings(config), context, load(source, folder, device=side.device))
    task.side = side
    if "gradients" in config:
        keep_first_gradients(model.net, config["gradients"])
    rows = sum(task.size(example) for example in task.data.training)
    side.ready(versions=versions("togi"), floor_bytes=togi_common.floor_bytes(model.net), computed_tokens=rows)
    fit(wanted, context, model, task)


if __name__ == "__main__":
    main()
