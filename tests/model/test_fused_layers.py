"""Layers that keep less: values and gradients are as near to float64 as the library's, and less is kept."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from tiny import SHAPE, TrueFloat64, as_near, tiny_model
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from togi import kernels
from togi.model.adapter import LoraSettings
from togi.model.decoders import ATTENTION, GATED, GELU_GATED, NORMS, SHIFTED_NORMS, library_kind, use_library
from togi.model.forest import Sequence, plant
from togi.model.fused_layers import keep_less
from togi.model.lora import add_lora
from togi.model.policy import Policy, plain_logprobs, score_tokens
from togi.model.recompute import recomputed_layers

ALL = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "gemma2", "gemma3")
IDS = torch.tensor([[5, 9, 11, 7, 3, 20, 8, 6]])


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def compiled(request) -> Iterator[bool]:
    """With compiled functions, and with torch alone, which gives the same bits as the library."""
    if not request.param:
        with kernels.without():
            yield False
    elif kernels.identity() == "nothing":
        pytest.skip("needs a C compiler")
    else:
        yield True


def agree(found: torch.Tensor, library: torch.Tensor, exact: torch.Tensor, compiled: bool) -> None:
    """Asserts equal bits; compiled functions may differ by rounding, as they sum in another order than the library."""
    assert torch.equal(found, library) or (compiled and as_near(found, library, exact))


def made(kind: str) -> nn.Module:
    """A random model of a family."""
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE)) if kind == "qwen2" else tiny_model(kind)


def twins(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The same model twice: with the library's layers, and with layers that keep less."""
    plain = made(kind).to(dtype).eval()
    lean = copy.deepcopy(plain)
    keep_less(lean)
    return plain, lean


def results(net: nn.Module, precision=None) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits, gradients of their weighted sum, and bytes that the graph keeps besides the weights."""
    kept: dict[int, int] = {}
    weights = {param.untyped_storage().data_ptr() for param in net.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision or nullcontext():
        logits = net(input_ids=IDS, use_cache=False).logits
    torch.manual_seed(3)
    (logits * torch.randn(logits.shape).to(logits.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return logits, gradients, sum(kept.values())


Gradients = dict[str, torch.Tensor]


def joined(gradients: Gradients) -> torch.Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def learn_alike(ours: Gradients, library: Gradients, exact: Gradients) -> bool:
    assert ours.keys() == library.keys() == exact.keys()
    return as_near(joined(ours), joined(library), joined(exact))


def truth(net: nn.Module) -> tuple[torch.Tensor, Gradients]:
    """Logits and gradients of the library's layers in float64."""
    with TrueFloat64():
        return results(copy.deepcopy(net).double())[:2]


@pytest.mark.parametrize("kind", ALL)
def test_same_logits_and_gradients_and_less_is_kept(kind, compiled):
    plain, lean = twins(kind)
    exact, exact_gradients = truth(plain)
    library, gradients, kept = results(plain)
    found, ours, kept_by_us = results(lean)
    agree(found, library, exact, compiled)
    assert learn_alike(ours, gradients, exact_gradients)
    whole = kind in ("mixtral", "qwen3_moe") or (kind.startswith("gemma") and not compiled)  # experts, shifted norms
    assert kept_by_us < (kept if whole else 0.8 * kept)


def test_bf16_products_over_fp32_weights_give_the_same(compiled):
    plain, lean = twins("llama")
    exact, exact_gradients = truth(plain)
    library, gradients, kept = results(plain, torch.autocast("cpu", dtype=torch.bfloat16))
    found, ours, kept_by_us = results(lean, torch.autocast("cpu", dtype=torch.bfloat16))
    agree(found, library, exact, compiled)
    assert learn_alike(ours, gradients, exact_gradients)
    assert kept_by_us < kept


def test_bf16_weights_give_the_same(compiled):
    plain, lean = twins("llama", torch.bfloat16)
    exact, exact_gradients = truth(plain)
    library, gradients, _ = results(plain)
    found, ours, _ = results(lean)
    agree(found, library, exact, compiled)
    assert learn_alike(ours, gradients, exact_gradients)


def test_an_adapter_on_the_map_behind_the_gate_learns_the_same(compiled):
    settings = LoraSettings(rank=4, targets=("up_proj", "down_proj"))
    plain, lean = (add_lora(net, settings, seed=2) for net in twins("llama"))
    for net in (plain, lean):
        for name, param in net.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(param, 0.1)
    exact, exact_gradients = truth(plain)
    library, found = results(plain), results(lean)
    agree(found[0], library[0], exact, compiled)
    assert learn_alike(found[1], library[1], exact_gradients)


def test_layers_that_are_computed_again_learn_the_same_and_keep_little(compiled):
    plain, lean = twins("llama")
    library = results(plain)
    with recomputed_layers(lean, True):
        found = results(lean)
    assert learn_alike(found[1], library[1], truth(plain)[1])
    assert found[2] < library[2] / 2


def test_without_a_graph_the_same_comes_out(compiled):
    plain, lean = twins("qwen3")
    exact = truth(plain)[0]
    with torch.no_grad():
        agree(lean(input_ids=IDS).logits, plain(input_ids=IDS).logits, exact, compiled)


def forest_groups() -> list[list[Sequence]]:
    """Two trees, one with branches."""
    ids = tuple(IDS[0].tolist())
    scored = (False,) * 3 + (True,) * 5
    return [[Sequence(ids, scored), Sequence((*ids[:4], *ids[:4]), scored)], [Sequence(ids[::-1], scored)]]


def flat_sequences() -> list[Sequence]:
    return [sequence for group in forest_groups() for sequence in group]


def forest_gradients(net: nn.Module, precision=None) -> tuple[torch.Tensor, Gradients]:
    """Log-probabilities of two trees, one with branches, and the gradients of their weighted sum."""
    groups = forest_groups()
    policy = Policy(net, check=False)
    with precision or nullcontext():
        logp_N = policy(plant(groups)).logp_N
    torch.manual_seed(4)
    (logp_N * torch.randn(logp_N.shape).to(logp_N.dtype)).sum().backward()
    return logp_N.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("half", [False, True])
def test_a_forest_learns_the_same_with_compiled_parts(kind, half, compiled):
    """The attention and the softmax of every known family."""
    plain = made(kind).to(torch.float32)
    ours = copy.deepcopy(plain)
    precision = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half)
    found, gradients = forest_gradients(ours, precision)
    with kernels.without():
        with TrueFloat64():
            exact, exact_gradients = forest_gradients(copy.deepcopy(plain).double())
        library, library_gradients = forest_gradients(plain, precision)
    assert as_near(found, library, exact)
    assert learn_alike(gradients, library_gradients, exact_gradients)


def test_forwards_can_be_restored():
    plain, lean = twins("qwen3")
    for module in lean.modules():
        use_library(module)
    assert [type(module) for module in lean.modules()] == [type(module) for module in plain.modules()]
    assert torch.equal(results(lean)[0], results(plain)[0])


def test_the_names_are_those_of_the_library():
    known = {*NORMS, *GATED, *SHIFTED_NORMS, *GELU_GATED, *ATTENTION}
    modules = [module for kind in ALL for module in made(kind).modules()]
    assert {type(module).__name__ for module in modules} >= known
    for module in modules:
        keep_less(module)
        assert (type(module) is not library_kind(module)) == (type(module).__name__ in known)


def test_a_library_that_computes_otherwise_keeps_its_own_parts(monkeypatch, caplog):
    """Simulates a new library version that defines a norm differently."""

    def other(self, hidden_states):
        return 1.5 * self.weight * hidden_states / (hidden_states.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    monkeypatch.setattr(LlamaRMSNorm, "forward", other)
    net = made("llama").to(torch.float32)
    own = copy.deepcopy(net)
    policy = Policy(net)
    assert "differ from those of transformers" in caplog.text
    assert not any(type(module) is not library_kind(module) for module in net.modules())
    logp_N = score_tokens(policy.net, plant(forest_groups())).logp_N
    torch.testing.assert_close(logp_N, plain_logprobs(own, flat_sequences()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_parts_that_agree_stay(kind, caplog):
    net = made(kind).to(torch.float32)
    Policy(net)
    assert any(type(module) is not library_kind(module) for module in net.modules())
    assert "differ" not in caplog.text
