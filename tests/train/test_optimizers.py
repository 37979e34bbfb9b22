"""Alternatives to plain AdamW: master weights, offload and 8 bits follow AdamW, and survive a checkpoint."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from togi.core.errors import RecipeError
from togi.train import masters
from togi.train.checkpoint import capture, restore, save
from togi.train.masters import MasterWeightOptimizer
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, optimizer_maker, trained

NEEDS_BITS = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here")


def net_of(dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 8)).to(dtype)


def update_of(net: nn.Module, **options) -> Update:
    settings = AdamWSettings(learning_rate=0.01, weight_decay=0.1, **options)
    optimizer = build_adamw(trained(net.named_parameters()), settings, rates={"2.": 0.03})
    return Update(optimizer=optimizer, schedule=Schedule(kind="linear", total_steps=8), max_grad_norm=10.0)


def train(net: nn.Module, update: Update, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randn(16, 64, generator=generator).to(next(net.parameters()).dtype)
        (net(rows) - rows[:, :8].sin()).float().square().mean().backward()
        update.apply(step)


def moved(net: nn.Module, start: nn.Module) -> torch.Tensor:
    return torch.cat([(a - b).flatten().float() for a, b in zip(net.parameters(), start.parameters(), strict=True)])


def trained_by(**options) -> torch.Tensor:
    net = net_of()
    start = copy.deepcopy(net)
    train(net, update_of(net, **options), 0, 6)
    return moved(net, start).detach()


@pytest.mark.parametrize("bucket", [1, 7000, masters.BUCKET])
def test_masters_of_float32_weights_change_no_bit(bucket, monkeypatch):
    monkeypatch.setattr(masters, "BUCKET", bucket)
    assert torch.equal(trained_by(masters=True), trained_by())


@NEEDS_BITS
def test_eight_bits_follow_the_plain_optimiser():
    plain, eight = trained_by(), trained_by(bits=8)
    assert (eight - plain).norm() < 0.1 * plain.norm()
    assert not torch.equal(eight, plain)
    assert torch.equal(trained_by(bits=8, masters=True), eight)


def test_masters_keep_what_bfloat16_weights_would_lose():
    """A learning rate below half a unit in the last place cannot move bfloat16 weights without masters."""
    found = {}
    for with_masters in (False, True):
        net = net_of(torch.bfloat16)
        start = copy.deepcopy(net)
        params = trained(net.named_parameters())
        optimizer = build_adamw(params, AdamWSettings(learning_rate=2e-5, masters=with_masters))
        train(net, Update(optimizer=optimizer, schedule=Schedule(), max_grad_norm=10.0), 0, 60)
        found[with_masters] = (moved(net, start)[: 64 * 96] != 0).float().mean().item()
        assert next(net.parameters()).dtype == torch.bfloat16
    assert found[True] > 0.5 > found[False]


WAYS = [
    {},
    {"masters": True},
    pytest.param({"bits": 8}, marks=NEEDS_BITS),
    pytest.param({"bits": 8, "masters": True}, marks=NEEDS_BITS),
]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_equals_uninterrupted(options, dtype, tmp_path):
    whole = net_of(dtype)
    train(whole, update_of(whole, **options), 0, 8)
    first = net_of(dtype)
    update = update_of(first, **options)
    train(first, update, 0, 5)
    path = save(tmp_path, capture(5, trained(first.named_parameters()), update.optimizer, {}))
    again = net_of(dtype)
    update = update_of(again, **options)
    assert restore(path, trained(again.named_parameters()), update.optimizer).step == 5
    train(again, update, 5, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_parameter_without_gradient_stays():
    net = net_of()
    params = trained(net.named_parameters())
    make = optimizer_maker(AdamWSettings(learning_rate=0.1))
    optimizer = MasterWeightOptimizer([{"params": list(params.values()), "lr": 0.1}], make, torch.device("cpu"))
    before = net[2].weight.detach().clone()
    net[0](torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert torch.equal(net[2].weight, before) and "master" in optimizer.state_dict()["state"][2]


def test_eight_bits_without_the_library_say_what_to_do(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("togi.train.optimizer.importlib.import_module", absent)
    with pytest.raises(RecipeError, match=r"needs bitsandbytes.*togi\[quantised\]"):
        update_of(net_of(), bits=8)
