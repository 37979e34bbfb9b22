"""The distance between sampler and trainer is reported in every step, however the step is cut."""

import math
from dataclasses import replace

import pytest
import torch

from togi.objectives.base import Batch, Output, add_metrics, read_metrics
from togi.objectives.grpo import GRPO, SamplerCorrection

TRAINER = torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64)
SAMPLER = torch.tensor([-1.0, -2.0 - math.log(4), -0.5 + math.log(2), -3.0], dtype=torch.float64)


def told(correction: SamplerCorrection | None, cuts: list[tuple[int, int]]) -> dict[str, float]:
    """Returns the metrics of two answers of two tokens each; `cuts` are the token ranges of the micro-batches."""
    found: dict = {}
    for start, stop in cuts:
        sequence_N = torch.arange(stop - start) // 2
        batch = Batch(
            num_sequences=(stop - start) // 2,
            sequence_N=sequence_N,
            advantage_S=torch.ones((stop - start) // 2, dtype=torch.float64),
            sampler_logp_N=SAMPLER[start:stop],
        )
        logp_N = TRAINER[start:stop].clone().requires_grad_()
        objective = replace(GRPO(), correction=correction)
        add_metrics(found, objective.loss(Output(logp_N=logp_N), batch, {"sequences": 2, "tokens": 4})[1])
    return {name: value for name, value in read_metrics(found).items() if name.startswith("sampler_")}


@pytest.mark.parametrize("correction", [None, SamplerCorrection(level="token", mode="truncate", cap=3.0)])
def test_the_distance_is_told_with_and_without_a_correction(correction):
    found = told(correction, [(0, 4)])
    up, down = math.log(4), -math.log(2)
    assert found["sampler_mismatch"] == pytest.approx((up - down) / 4)
    assert found["sampler_kl"] == pytest.approx((4 - 1 - up + 0.5 - 1 - down) / 4)
    assert found["sampler_weight/max"] == pytest.approx(4)
    assert found["sampler_outside"] == pytest.approx(1 / 4)


def test_weights_of_whole_answers_and_a_floor():
    found = told(SamplerCorrection(level="sequence", cap=3.0, floor=0.6), [(0, 4)])
    assert found["sampler_weight/max"] == pytest.approx(4) and found["sampler_outside"] == 1.0


def test_no_number_depends_on_the_cut():
    assert told(None, [(0, 2), (2, 4)]) == pytest.approx(told(None, [(0, 4)]))
    assert told(None, [(2, 4), (0, 2)]) == pytest.approx(told(None, [(0, 4)]))
