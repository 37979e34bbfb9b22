"""The benchmark's count of traffic between ranks is exact: it equals what FSDP2 must gather and scatter."""

import importlib
import sys
from collections import Counter

import pytest
import torch
from places import ROOT
from tiny import tiny_model
from together import together

from togi.core.ranks import Ranks
from togi.model.forest import Sequence, plant
from togi.model.policy import Policy
from togi.objectives.base import Batch, Output
from togi.objectives.sft import SFT
from togi.train.loop import MicroBatch, train_steps
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained
from togi.train.sharding import ShardedModel

sys.path.append(str(ROOT / "benchmarks" / "sides"))
traffic = importlib.import_module("traffic")

PARTS = 3  # micro-batches of a step on each rank


def step(ranks: Ranks) -> tuple[Counter[str], dict[str, int]]:
    """Returns the bytes counted in one step, and their lower bound."""
    policy = Policy(tiny_model("llama", torch.float32), check=False)
    least = traffic.bound(policy, ranks.size, PARTS)
    spread = ShardedModel(policy, ranks)
    params = trained(spread.module.net.named_parameters())
    update = Update(
        optimizer=build_adamw(params, AdamWSettings(learning_rate=1e-3)), schedule=Schedule(), max_grad_norm=1.0
    )
    forest = plant([[Sequence(tuple(range(3, 13)), (False,) * 4 + (True,) * 6)]])
    micro = MicroBatch(inputs=forest, batch=Batch(num_sequences=1, sequence_N=forest.sequence_N), num_tokens=10)

    def forward(inputs: object) -> Output:
        return Output(logp_N=spread.module(inputs).logp_N)

    with traffic.Traffic(ranks.size) as found:
        list(train_steps(forward, update, SFT(), [[micro] * PARTS], ranks=ranks))
    return found.received, least


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_counted_is_what_fsdp2_has_to_send(size):
    for counted, least in together(size, step):
        assert {kind: counted[kind] for kind in least} == least
        assert 0 < counted["agreed"] < 20_000 and counted["summed"] < 100  # counts and losses; the norm of the gradient


def test_one_process_sends_nothing():
    ((counted, least),) = together(1, alone)
    assert sum(counted.values()) == 0 and set(least.values()) == {0}


def alone(ranks: Ranks) -> tuple[Counter[str], dict[str, int]]:
    return step(Ranks())
