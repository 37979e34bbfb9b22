"""Optimiser steps by one rank or several, each with one thread and the same work: togi's loop, objective and optimiser.

This process is rank 0. It forks the others, and tells them before each step whether there is another one. The first
step is counted (traffic.py) and not timed, because counting slows it.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import togi_common
import togi_update
import torch
import workloads
from side import Side, versions
from traffic import Traffic, bound

from togi.core.ranks import ALONE, Ranks
from togi.model.forest import Forest, Sequence, move, plant, split_by_tokens
from togi.objectives.base import Batch, Objective, Output
from togi.objectives.grpo import GRPO
from togi.objectives.sft import SFT
from togi.train.loop import MicroBatch, train_steps
from togi.train.ranks import join
from togi.train.sharding import ShardedModel

Micro = MicroBatch[Forest]


def chats(config: dict[str, Any]) -> list[Micro]:
    """The prepared texts, laid out and split as in `train.sft`."""
    groups = [
        [Sequence(tuple(ids), (False,) * first + (True,) * (len(ids) - first))]
        for ids, first in workloads.texts(config)
    ]
    forests = [plant(cut.groups) for cut in split_by_tokens(groups, config["tokens"])]
    return [
        MicroBatch(
            inputs=forest,
            batch=Batch(num_sequences=forest.num_sequences, sequence_N=forest.sequence_N),
            num_tokens=len(forest.ids_T),
        )
        for forest in forests
    ]


WORK: dict[str, tuple[Any, Objective]] = {"sft": (chats, SFT()), "grpo": (togi_update.micro_batches, GRPO())}


def pinned(number: int, size: int) -> None:
    """Gives this rank one thread, and its own processor if there are enough."""
    torch.set_num_threads(1)
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) >= size:
        os.sched_setaffinity(0, {cpus[number]})


def forked(size: int) -> tuple[int, list[int], str]:
    """The number of this rank, the processes that it forked, and the rendezvous of the ranks."""
    meeting = f"file://{tempfile.mkdtemp(prefix='bench-ranks-')}/meeting"
    children = []
    for number in range(1, size):
        if not (child := os.fork()):
            return number, [], meeting
        children.append(child)
    return 0, children, meeting


def train(ranks: Ranks, config: dict[str, Any], side: Side | None) -> None:
    """Trains as long as the harness asks for steps."""
    make, objective = WORK[config["work"]]
    micro_batches: list[Micro] = make(config)
    policy = togi_common.load(config)
    least = bound(policy, ranks.size, len(micro_batches))
    spread = ShardedModel(policy, ranks)
    update = togi_common.update(spread.module.net, config)
    asked = 0.0

    def forward(forest: Forest) -> Output:
        found = spread.module(move(forest, "cpu"))
        return Output(logp_N=found.logp_N)

    def steps() -> Iterator[list[Micro]]:
        nonlocal asked
        while ranks.on_first_rank(lambda: side is None or side.wait()):
            asked = side.clock() if side else 0.0
            yield micro_batches

    with Traffic(ranks.size) as traffic:
        list(train_steps(forward, update, objective, [micro_batches], ranks=ranks))
    if side:
        facts = {"floor_bytes": togi_common.floor_bytes(spread.module.net), "bound": least}
        facts["tokens_a_rank"] = sum(micro.num_tokens for micro in micro_batches)
        side.ready(versions=versions("togi"), received=dict(traffic.received), **facts)
    for info in train_steps(forward, update, objective, steps(), ranks=ranks):
        if side:
            side.report(side.clock() - asked, rows=info.num_tokens)


def main() -> None:
    side = Side()
    size = side.config["ranks"]
    number, children, meeting = forked(size)
    pinned(number, size)
    ranks = join(number, size, meeting, number) if size > 1 else ALONE
    train(ranks, side.config, None if number else side)
    for child in children:
        os.waitpid(child, 0)
    if size > 1 and not number:
        Path(meeting.removeprefix("file://")).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
