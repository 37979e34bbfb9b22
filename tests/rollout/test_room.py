"""The memory of sampling: weights that it shares with training, and keys up to a given size."""

import copy

import pytest
import torch
from rollout_tiny import CONFIGS, SIZES, CharTokenizer, tiny
from transformers import LlamaConfig

from togi.core.errors import InputError
from togi.core.protocols import Request
from togi.core.records import SamplingParams
from togi.model.adapter import LoraSettings, lora_library
from togi.rollout.engine import answer
from togi.rollout.local import Sampler
from togi.rollout.room import KeyRoom
from togi.rollout.sampling_model import beside_training

LENGTHS = (3, 20, 40, 7, 33, 12)


def requests(n: int = 2, max_tokens: int = 24) -> list[Request]:
    params = SamplingParams(max_tokens=max_tokens, n=n)
    return [
        Request(
            prompt_ids=tuple((7 * at + i) % 23 + 1 for i in range(length)),
            params=params,
            seeds=tuple(range(10 * at, 10 * at + n)),
        )
        for at, length in enumerate(LENGTHS)
    ]


def ids_of(sampler: Sampler) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group] for group in answer(sampler, requests())]


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gemma2, wide heads"])
def net(request):
    return tiny(CONFIGS[request.param])


def sampler_of(net, size: float | None = None) -> Sampler:
    sampler = Sampler(net, CharTokenizer(), "Q")
    if size is not None:
        sampler.bound(size)
    return sampler


def test_answers_are_the_same_however_small_the_cache_and_it_never_holds_more(net, monkeypatch):
    free = ids_of(sampler_of(net))
    needed = (48 + 2 * 32) * KeyRoom(net, 1).token  # the longest prompt with its answers
    sizes: list[int] = []
    for room in (needed, 2.5 * needed):
        bounded = sampler_of(net, room)
        most = 0
        real = bounded.step

        def step(bounded=bounded, real=real):
            nonlocal most
            real()
            most = max(most, bounded.cache_bytes)

        monkeypatch.setattr(bounded, "step", step)
        assert ids_of(bounded) == free
        assert 0 < most <= room
        sizes.append(most)
    assert sizes[0] < sizes[1]  # more room: more answers run at once


def test_a_request_whose_keys_never_fit_is_refused_with_both_sizes(net):
    bounded = sampler_of(net, 100 * KeyRoom(net, 1).token)
    with pytest.raises(InputError, match=r"the keys of its 2 answers of 64 tokens take .* but the key cache has"):
        bounded.add(requests(max_tokens=64)[0])
    assert not bounded.busy


def test_room_is_what_the_cache_really_takes(net):
    sampler = sampler_of(net)
    sampler.add(requests(n=1, max_tokens=16)[1])
    sampler.step()
    assert sampler.cache_bytes == (32 + 16) * KeyRoom(net, 1).token


# --- weights ----------------------------------------------------------------------------------------------------------


def adapted(dtype: torch.dtype) -> torch.nn.Module:
    net = lora_library().add_lora(tiny(CONFIGS["llama"]).to(dtype), LoraSettings(rank=2), seed=1)
    generator = torch.Generator().manual_seed(5)
    for weight in net.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return net


def test_only_the_adapter_is_copied_where_the_base_has_the_type_of_sampling():
    net = adapted(torch.bfloat16)
    twin = dict(beside_training(net, torch.bfloat16).named_parameters())
    for name, weight in net.named_parameters():
        shared = twin[name].data_ptr() == weight.data_ptr()
        assert shared is not weight.requires_grad, name
        assert twin[name].dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for weight in net.parameters() if weight.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_shares_its_base_samples_the_bits_of_a_whole_copy(dtype):
    net = adapted(dtype)
    whole = copy.deepcopy(net).to(torch.bfloat16)
    shared = beside_training(net, torch.bfloat16)
    found = [list(answer(Sampler(each, CharTokenizer(), "Q"), requests())) for each in (whole, shared)]
    assert found[0] == found[1]


def test_weights_in_four_bits_are_shared_with_their_scales():
    quantised = pytest.importorskip("togi.model.quantised")
    net = tiny(LlamaConfig(**{**SIZES, "hidden_size": 64, "intermediate_size": 128}))  # type: ignore[arg-type]
    net = net.to(torch.bfloat16)
    quantised.quantise(net, "cpu")
    net = lora_library().add_lora(net, LoraSettings(rank=2), seed=1)
    twin = beside_training(net, torch.bfloat16)
    pairs = [(a, b) for a, b in zip(net.modules(), twin.modules(), strict=True) if hasattr(a, "quant_state")]
    assert pairs and all(a.weight is b.weight and a.quant_state is b.quant_state for a, b in pairs)
    whole = copy.deepcopy(net).to(torch.bfloat16)
    found = [list(answer(Sampler(each, CharTokenizer(), "Q"), requests())) for each in (whole, twin)]
    assert found[0] == found[1]
