"""A group without spread has no gradient: not computing it changes nothing, provided that it is counted."""

from typing import get_args

import pytest
import torch

from togi.objectives.base import Batch, Output
from togi.objectives.grpo import GRPO, Level, LossType

LENGTHS = (3, 5, 4, 2)


def loss_and_gradient(objective: GRPO, keep: int, idle: tuple[int, int]) -> tuple[float, torch.Tensor]:
    """Computes the first `keep` answers; `idle` is the number of answers and tokens that are left out."""
    torch.manual_seed(0)
    logp_N = -torch.rand(sum(LENGTHS), dtype=torch.float64)
    size = sum(LENGTHS[:keep])
    leaf = logp_N[:size].clone().requires_grad_()
    owner = torch.repeat_interleave(torch.arange(keep), torch.tensor(LENGTHS[:keep]))
    advantage = torch.tensor([1.2, -0.7, 0.0, 0.0], dtype=torch.float64)[:keep]
    batch = Batch(
        num_sequences=keep, sequence_N=owner, advantage_S=advantage, idle_sequences=idle[0], idle_tokens=idle[1]
    )
    loss, _ = objective.loss(Output(logp_N=leaf), batch, objective.counts(batch))
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad[: sum(LENGTHS[:2])]


@pytest.mark.parametrize("kind", list(get_args(LossType)))
def test_idle_answers_count_without_being_computed(kind):
    level: Level = "sequence" if kind == "luspo" else "token"
    objective = GRPO(loss_type=kind, level=level, max_tokens=8 if kind == "dr_grpo" else None)
    whole, part = loss_and_gradient(objective, 4, (0, 0)), loss_and_gradient(objective, 2, (2, sum(LENGTHS[2:])))
    assert whole[0] == pytest.approx(part[0], abs=1e-15)
    assert torch.equal(whole[1], part[1])
    forgotten = loss_and_gradient(objective, 2, (0, 0))
    assert not torch.allclose(whole[1], forgotten[1])
