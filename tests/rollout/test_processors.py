"""From logits to tokens: streams of random numbers, the two-level choice, each filter against a plain version."""

import numpy as np
import pytest
import torch

from togi.core.errors import InputError
from togi.core.records import SamplingParams
from togi.rollout import processors
from togi.rollout.processors import Settings, check_params, draw, keep, pick, uniform

CPU = torch.device("cpu")


def settings(*params: SamplingParams) -> Settings:
    return Settings.of(params, CPU)


def test_uniform_numbers_belong_to_stream_and_position_alone():
    seeds = np.array([0, 1, 2**63 - 1, 1], dtype=np.uint64)
    positions = np.array([0, 5, 7, 6])
    together = uniform(seeds, positions)
    alone = [uniform(seeds[i : i + 1], positions[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4


def test_uniform_numbers_are_uniform():
    grid = np.stack([uniform(np.full(500, s, dtype=np.uint64), np.arange(500)) for s in range(200)])
    assert (grid >= 0).all() and (grid < 1).all()
    counts, _ = np.histogram(grid, bins=20, range=(0, 1))
    assert abs(counts / grid.size - 0.05).max() < 0.003
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("vocabulary", [5, 256, 300, 1024])
def test_pick_is_the_inverse_of_the_cumulative_sum(vocabulary):
    weight = torch.rand(64, vocabulary, generator=torch.Generator().manual_seed(0))
    weight[weight < 0.3] = 0
    weight[:, 1] = 0.5
    random = torch.linspace(0, 1 - 2**-53, 64, dtype=torch.float64)
    token, total = pick(weight, random)
    reached = weight.double().cumsum(-1)
    torch.testing.assert_close(total, reached[:, -1], rtol=1e-6, atol=0)
    assert (weight.gather(1, token[:, None]) > 0).all()
    at = random * reached[:, -1]
    upper = reached.gather(1, token[:, None])[:, 0]
    lower = upper - weight.double().gather(1, token[:, None])[:, 0]
    assert ((lower <= at + 1e-5) & (at <= upper + 1e-5)).all()


def test_pick_never_takes_a_token_of_weight_zero():
    weight = torch.zeros(3, 600)
    weight[0, 0] = weight[1, 599] = weight[2, 300] = 1e-20
    for value in (0.0, 0.5, 1 - 2**-53):
        token, _ = pick(weight, torch.full((3,), value, dtype=torch.float64))
        assert token.tolist() == [0, 599, 300]


def test_drawn_shares_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]).repeat(20000, 1)
    random = torch.from_numpy(uniform(np.arange(20000, dtype=np.uint64), np.zeros(20000)))
    found = draw(logits.clone(), settings(*[SamplingParams(temperature=0.7)] * 20000), random)
    shares = torch.bincount(found.token, minlength=5) / 20000
    expected = (logits[0] / 0.7).softmax(-1)
    assert (shares - expected).abs().max() < 0.012
    expected_logp = (logits[0].double() / 0.7).log_softmax(-1)[found.token]
    torch.testing.assert_close(found.logp, expected_logp, atol=1e-6, rtol=0)


def test_rows_do_not_depend_on_the_settings_beside_them():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 2000, generator=generator) * 3
    random = torch.rand(4, generator=generator, dtype=torch.float64)
    params = [
        SamplingParams(temperature=0.8),
        SamplingParams(top_p=0.999, temperature=1.7),
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=5, min_p=0.1, repetition_penalty=1.3),
    ]
    seen = torch.arange(20).repeat(4, 1)
    together = draw(logits.clone(), settings(*params), random, seen)
    for row, one in enumerate(params):
        part = slice(row, row + 1)
        alone = draw(logits[part].clone(), settings(one), random[part], seen[part])
        assert together.token[row] == alone.token[0]
        assert together.logp[row].item() == pytest.approx(alone.logp[0].item(), abs=1e-6)
        assert together.sampled_logp[row].item() == pytest.approx(alone.sampled_logp[0].item(), abs=1e-6)


def test_top_p_looks_at_more_candidates_where_the_first_do_not_hold_enough(monkeypatch):
    monkeypatch.setattr(processors, "CANDIDATES", 4)
    scores = torch.randn(6, 900, generator=torch.Generator().manual_seed(2))
    kept = keep(scores.clone(), settings(*[SamplingParams(top_p=0.8)] * 6)) > -torch.inf
    ranked, order = scores.softmax(-1).double().sort(descending=True)
    before = ranked.cumsum(-1) - ranked
    expected = torch.zeros_like(kept).scatter(1, order, before < 0.8)
    assert (kept == expected).all()


def test_equal_scores_at_the_border_are_all_kept():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0, -5.0]])
    for one in (SamplingParams(top_k=2), SamplingParams(top_p=0.3)):
        assert (keep(scores.clone(), settings(one)) > -torch.inf).tolist() == [[True, True, True, False, False]]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(temperature=-1), "temperature is -1; allowed: 0"),
        (SamplingParams(top_p=0), "top_p is 0; allowed: above 0, at most 1"),
        (SamplingParams(top_k=-1), "top_k is -1"),
        (SamplingParams(min_p=1.5), "min_p is 1.5; allowed: from 0"),
        (SamplingParams(repetition_penalty=0), "repetition_penalty is 0"),
        (SamplingParams(max_tokens=0), "max_tokens is 0; allowed: 1 or more"),
        (SamplingParams(n=0), "n is 0"),
        (SamplingParams(stop=("",)), "stop is"),
    ],
)
def test_settings_out_of_range_are_refused(params, message):
    with pytest.raises(InputError, match=message):
        check_params(params)
