"""Layers that keep less: the same numbers and gradients as the library's, and less is kept."""

import copy
from contextlib import nullcontext

import pytest
import torch
from tiny import SHAPE, tiny_model
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from togi.model.lean import GATED, NORMS, keep_less
from togi.model.lora import LoraSettings, add_lora
from togi.model.recompute import recomputed_layers

KINDS = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
IDS = torch.tensor([[5, 9, 11, 7, 3, 20, 8, 6]])


def made(kind: str) -> nn.Module:
    """A random model of a family."""
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE)) if kind == "qwen2" else tiny_model(kind)


def twins(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The same model as the library has it and with layers that keep less."""
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
    (logits * torch.randn(logits.shape, dtype=logits.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return logits, gradients, sum(kept.values())


def far(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs) / largest


@pytest.mark.parametrize("kind", KINDS)
def test_same_logits_and_gradients_and_less_is_kept(kind):
    plain, lean = twins(kind)
    expected, gradients, kept = results(plain)
    found, ours, kept_by_us = results(lean)
    assert torch.equal(found, expected)
    assert far(ours, gradients) < 2e-6
    assert kept_by_us < (kept if kind in ("mixtral", "qwen3_moe") else 0.8 * kept)


def test_bf16_products_over_fp32_weights_give_the_same():
    plain, lean = twins("llama")
    for net in (plain, lean):
        net.requires_grad_(True)
    expected, gradients, kept = results(plain, torch.autocast("cpu", dtype=torch.bfloat16))
    found, ours, kept_by_us = results(lean, torch.autocast("cpu", dtype=torch.bfloat16))
    assert torch.equal(found, expected)
    assert far(ours, gradients) < 1e-2
    assert kept_by_us < kept


def test_bf16_weights_give_the_same():
    plain, lean = twins("llama", torch.bfloat16)
    expected, gradients, _ = results(plain)
    found, ours, _ = results(lean)
    assert torch.equal(found, expected)
    assert far(ours, gradients) < 2e-2


def test_an_adapter_on_the_map_behind_the_gate_learns_the_same():
    settings = LoraSettings(rank=4, targets=("up_proj", "down_proj"))
    found = []
    for net in twins("llama"):
        adapted = add_lora(net, settings, seed=2)
        for name, param in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(param, 0.1)
        found.append(results(adapted))
    assert torch.equal(found[1][0], found[0][0])
    assert far(found[1][1], found[0][1]) < 2e-6


def test_layers_that_are_computed_again_learn_the_same_and_keep_little():
    plain, lean = twins("llama")
    expected = results(plain)
    with recomputed_layers(lean, True):
        found = results(lean)
    assert far(found[1], expected[1]) < 2e-6
    assert found[2] < expected[2] / 2


def test_without_a_graph_the_library_computes():
    plain, lean = twins("qwen3")
    with torch.no_grad():
        assert torch.equal(lean(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_the_names_are_those_of_the_library():
    modules = [module for kind in KINDS for module in made(kind).modules()]
    assert {type(module).__name__ for module in modules} >= {*NORMS, *GATED}
    for module in modules:
        keep_less(module)
        assert ("forward" in vars(module)) == (type(module).__name__ in (*NORMS, *GATED))
