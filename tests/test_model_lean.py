"""Layers that keep less: the same numbers and gradients as the library's, and less is kept."""

import copy
from contextlib import nullcontext

import pytest
import torch
from tiny import SHAPE, tiny_model
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from togi.model.forest import Sequence, plant
from togi.model.lean import keep_less
from togi.model.logprobs import Policy
from togi.model.lora import LoraSettings, add_lora
from togi.model.native import Native, native
from togi.model.parts import ATTENTION, GATED, GELU_GATED, LAYERS, NORMS, SHIFTED_NORMS, library_kind, use_library
from togi.model.recompute import recomputed_layers

KINDS = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
IDS = torch.tensor([[5, 9, 11, 7, 3, 20, 8, 6]])


ALL = (*KINDS, "gemma2", "gemma3")
ROUNDING = {True: 1e-5, False: 2e-6}
"""Relative to the largest: compiled functions sum in another order than the library; torch's kept parts in the same."""


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def compiled(request, monkeypatch) -> bool:
    """With compiled functions, and with torch alone, which then gives the library's bits."""
    if not request.param:
        for name in ("lean", "turned"):
            monkeypatch.setattr(f"togi.model.{name}.native", lambda: None)
    elif native() is None:
        pytest.skip("needs a C compiler")
    return request.param


def agree(found: torch.Tensor, expected: torch.Tensor, compiled: bool, tolerance: float) -> None:
    if compiled:
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    else:
        assert torch.equal(found, expected)


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
    (logits * torch.randn(logits.shape).to(logits.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return logits, gradients, sum(kept.values())


def far(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs) / largest


@pytest.mark.parametrize("kind", KINDS)
def test_same_logits_and_gradients_and_less_is_kept(kind, compiled):
    plain, lean = twins(kind)
    expected, gradients, kept = results(plain)
    found, ours, kept_by_us = results(lean)
    agree(found, expected, compiled, ROUNDING[True])
    assert far(ours, gradients) < ROUNDING[compiled]
    assert kept_by_us < (kept if kind in ("mixtral", "qwen3_moe") else 0.8 * kept)


def test_bf16_products_over_fp32_weights_give_the_same(compiled):
    plain, lean = twins("llama")
    exact = results(copy.deepcopy(plain).double())[1]
    expected, gradients, kept = results(plain, torch.autocast("cpu", dtype=torch.bfloat16))
    found, ours, kept_by_us = results(lean, torch.autocast("cpu", dtype=torch.bfloat16))
    agree(found, expected, compiled, 1e-2)
    assert far(ours, exact) < 1.5 * far(gradients, exact) < 0.1
    assert kept_by_us < kept


def test_bf16_weights_give_the_same(compiled):
    plain, lean = twins("llama", torch.bfloat16)
    expected, gradients, _ = results(plain)
    found, ours, _ = results(lean)
    agree(found, expected, compiled, 2e-2)
    assert far(ours, gradients) < 2e-2


def test_an_adapter_on_the_map_behind_the_gate_learns_the_same(compiled):
    settings = LoraSettings(rank=4, targets=("up_proj", "down_proj"))
    found = []
    for net in twins("llama"):
        adapted = add_lora(net, settings, seed=2)
        for name, param in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(param, 0.1)
        found.append(results(adapted))
    agree(found[1][0], found[0][0], compiled, ROUNDING[True])
    assert far(found[1][1], found[0][1]) < ROUNDING[compiled]


def test_layers_that_are_computed_again_learn_the_same_and_keep_little(compiled):
    plain, lean = twins("llama")
    expected = results(plain)
    with recomputed_layers(lean, True):
        found = results(lean)
    assert far(found[1], expected[1]) < ROUNDING[compiled]
    assert found[2] < expected[2] / 2


def test_without_a_graph_the_same_comes_out(compiled):
    plain, lean = twins("qwen3")
    with torch.no_grad():
        agree(lean(input_ids=IDS).logits, plain(input_ids=IDS).logits, compiled, ROUNDING[True])


def forest_gradients(net: nn.Module, precision=None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities of two trees, one with branches, and the gradients of their weighted sum."""
    ids = tuple(IDS[0].tolist())
    scored = (False,) * 3 + (True,) * 5
    groups = [[Sequence(ids, scored), Sequence((*ids[:4], *ids[:4]), scored)], [Sequence(ids[::-1], scored)]]
    policy = Policy(net, check=False)
    with precision or nullcontext():
        logp_N = policy(plant(groups)).logp_N
    torch.manual_seed(4)
    (logp_N * torch.randn(logp_N.shape)).sum().backward()
    return logp_N.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("half", [False, True])
def test_compiled_parts_of_a_forest_learn_the_same(kind, half, monkeypatch):
    """Norms, gates and turns are computed by compiled functions in every known family."""
    if native() is None:
        pytest.skip("needs a C compiler")
    met = set()

    def watched(name: str):
        real = getattr(Native, name)
        return lambda self, *given, **more: met.add(name) or real(self, *given, **more)

    for name in ("norm", "norm_backward", "gate", "gate_backward", "turn"):
        monkeypatch.setattr(Native, name, watched(name))
    plain = made(kind).to(torch.float32)
    ours = copy.deepcopy(plain)
    precision = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half)
    found, gradients = forest_gradients(ours, precision)
    gated = {"gate", "gate_backward"} if kind not in ("mixtral", "qwen3_moe") else set()
    turned = {"turn"} if kind != "qwen3_moe" else set()
    assert met == {"norm", "norm_backward", *gated, *turned}
    for name in ("lean", "turned"):
        monkeypatch.setattr(f"togi.model.{name}.native", lambda: None)
    expected, exact = forest_gradients(plain, precision)
    error = 5e-2 if half else ROUNDING[True]
    assert (found - expected).abs().max() <= error * expected.abs().max()
    assert far(gradients, exact) < error


def test_forwards_can_be_restored():
    plain, lean = twins("qwen3")
    for module in lean.modules():
        use_library(module)
    assert [type(module) for module in lean.modules()] == [type(module) for module in plain.modules()]
    assert torch.equal(results(lean)[0], results(plain)[0])


def test_the_names_are_those_of_the_library(compiled):
    known = {*NORMS, *GATED}
    if compiled:
        known |= {*SHIFTED_NORMS, *GELU_GATED, *ATTENTION, *LAYERS}
    modules = [module for kind in ALL for module in made(kind).modules()]
    assert {type(module).__name__ for module in modules} >= known
    for module in modules:
        keep_less(module)
        assert (type(module) is not library_kind(module)) == (type(module).__name__ in known)
