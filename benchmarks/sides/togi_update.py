"""One GRPO update by togi: its own loop, objective and optimiser on a prepared batch."""

from collections.abc import Iterator
from typing import Any

import togi_common
import torch
import workloads
from side import Side, versions

from togi.model.forest import Forest, plant, split_by_tokens
from togi.objectives.base import Batch
from togi.objectives.grpo import GRPO
from togi.train.loop import MicroBatch, train_steps


def micro_batches(config: dict[str, Any]) -> list[MicroBatch[Forest]]:
    """The prepared batch, laid out and split as in the training stage."""
    device = config.get("device", "cpu")
    advantage_S = torch.tensor(workloads.advantages(config))
    batches = []
    for cut in split_by_tokens(togi_common.sequences(config), config["tokens"]):
        forest = plant(cut.groups)
        batch = Batch(
            num_sequences=forest.num_sequences,
            sequence_N=forest.sequence_N.to(device),
            advantage_S=advantage_S[list(cut.index_S)].to(device),
        )
        batches.append(MicroBatch(inputs=forest, batch=batch, num_tokens=len(forest.ids_T)))
    return batches


def main() -> None:
    side = Side()
    config = side.config
    policy = togi_common.load(config)
    started = 0.0

    def steps() -> Iterator[list[MicroBatch[Forest]]]:
        nonlocal started
        while side.wait():
            started = side.clock()
            yield micro_batches(config)

    computed = sum(micro.num_tokens for micro in micro_batches(config))
    side.ready(versions=versions("togi"), floor_bytes=togi_common.floor_bytes(policy), computed_tokens=computed)
    update = togi_common.update(policy, config)
    for info in train_steps(togi_common.forward(policy, config), update, GRPO(), steps()):
        side.report(side.clock() - started, rows=info.num_tokens)


if __name__ == "__main__":
    main()
