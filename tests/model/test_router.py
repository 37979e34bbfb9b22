"""The router loss of a forest equals that of one sequence at a time, by the library's own function."""

import pytest
import torch
from tiny import TrueFloat64, tiny_model
from tiny_forests import batches, flat
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from togi.core.errors import InputError
from togi.model.forest import plant
from togi.model.policy import Policy
from togi.model.router import row_weights

EXPERTS = {"mixtral": (4, 2), "qwen3_moe": (6, 3)}


def plain_loss(net, sequences, experts: int, top_k: int) -> torch.Tensor:
    """The library's formula over the concatenated rows of all sequences, each computed on its own."""
    layers = [
        net.model(input_ids=torch.tensor([s.ids]), use_cache=False, output_router_logits=True).router_logits
        for s in sequences
    ]
    joined = tuple(torch.cat(parts) for parts in zip(*layers, strict=True))
    return load_balancing_loss_func(joined, experts, top_k)


def gradients(loss: torch.Tensor, net) -> torch.Tensor:
    net.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None and p.grad.any()])


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("name", ["many", "pairs", "trunk of one"])
def test_a_forest_counts_what_one_sequence_at_a_time_counts(kind, name):
    groups = batches()[name]
    with TrueFloat64():
        net = tiny_model(kind)
        expected = plain_loss(net, flat(groups), *EXPERTS[kind])
        expected_gradients = gradients(expected, net)
        policy = Policy(net, router_loss=0.5)
        found = policy(plant(groups))
        assert found.aux is not None
        found_gradients = gradients(found.aux / 0.5, net)
    assert found.aux.item() == pytest.approx(0.5 * expected.item(), abs=1e-6)  # the library computes in float32
    assert (found_gradients - expected_gradients).abs().max() < 1e-6


@pytest.mark.parametrize("kind", EXPERTS)
def test_layers_that_are_computed_again_give_the_same_router_loss(kind):
    found = []
    for again in (False, True):
        net = tiny_model(kind, torch.float32)
        policy = Policy(net, router_loss=0.5)
        if again:
            policy.recompute = True
        scored = policy(plant(batches()["many"]))
        found.append((scored.aux.detach(), gradients(scored.aux + scored.logp_N.sum(), net)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)


def test_the_loss_is_beside_the_log_probabilities_which_stay_as_they_are():
    groups = batches()["many"]
    net = tiny_model("mixtral")
    with torch.no_grad():
        plain, both = Policy(net)(plant(groups)), Policy(net, router_loss=0.1)(plant(groups))
    assert torch.equal(plain.logp_N, both.logp_N) and plain.aux is None


def test_a_trunk_counts_once_for_every_branch():
    forest = plant(batches()["pairs"])
    weight_T = row_weights(forest)
    assert float(weight_T.sum()) == sum(len(s.ids) for s in flat(batches()["pairs"]))
    assert sorted(weight_T.unique().tolist()) == [1.0, 2.0]


def test_a_model_without_experts_is_refused():
    with pytest.raises(InputError, match="no experts"):
        Policy(tiny_model("llama"), router_loss=0.01)
