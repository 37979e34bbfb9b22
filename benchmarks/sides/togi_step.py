"""Whole GRPO steps by togi: the rollouts of the stage `train.grpo` and the one loop, without checkpoints."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import togi_common
import togi_grpo
from side import Side, versions

from togi.core.sources import ModelSource
from togi.model.load import LoadedModel, load
from togi.stages.context import Context, Control
from togi.stages.training.grpo_work import GrpoBatches
from togi.text.template import Template
from togi.train.loop import train_steps

NEVER = "<|no answer ends with this|>"
BARE = Template(name="bare", terminator=NEVER, generation="", roles={"user": ("", ""), "assistant": ("", NEVER)})
"""Unchanged prompts, and answers of full length; the peer has the same settings."""


def context(config: dict[str, Any]) -> Context:
    """The context of a stage, without listeners."""
    folder = Path(tempfile.mkdtemp(prefix="bench-togi-"))
    silent = Control(send=lambda event: None)
    return Context(name="policy", folder=folder, cache=folder, seed=config["seed"], inputs={}, control=silent)


def main() -> None:
    side = Side()
    config = side.config
    loaded = load(ModelSource(kind="path", name=config["model"], template="chatml"), Path(config["model"]))
    model = LoadedModel(net=loaded.net, tokenizer=loaded.tokenizer, template=BARE, name="base")
    settings = togi_grpo.settings(config, micro_batch_tokens=config["tokens"])
    source = GrpoBatches(settings, context(config), model, togi_grpo.prompts(config))
    started = 0.0

    def steps() -> Iterator[Any]:
        nonlocal started
        made = source.steps(0)
        while side.wait():
            started = time.perf_counter()
            yield next(made)

    lengths = [len(ids) for ids in source.rollouts.prompt_ids.values()]
    side.ready(
        versions=versions("togi"),
        floor_bytes=togi_common.floor_bytes(model.net),
        mean_prompt_tokens=sum(lengths) / len(lengths),
    )
    update = togi_common.update(model.net, config)
    forward = togi_common.in_precision(source.forward, config)
    for info in train_steps(forward, update, source.updates.objective(), steps()):
        seconds = time.perf_counter() - started
        times = {f"{name}_seconds": value for name, value in source.made.times.items()}
        tokens = sum(len(answer.completion.token_ids) for answer in source.made.answers)
        side.report(seconds, update_seconds=info.seconds, answer_tokens=tokens, **times)


if __name__ == "__main__":
    main()
