"""The sampler's compiled attention and products against the plain computation in float64."""

import gc
import shutil
import weakref
from itertools import chain

import pytest
import torch
from rollout_tiny import CONFIGS, CharTokenizer, tiny
from transformers import LlamaConfig

from togi import kernels
from togi.core.records import SamplingParams
from togi.kernels import Options
from togi.kernels.dispatch import kernels as chosen
from togi.kernels.native import Native
from togi.rollout.attention import DecodePass, Heads, Places, PrefillPass
from togi.rollout.cache import KeyCache
from togi.rollout.local import Sampler
from togi.rollout.requests import Shared

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def functions() -> Native:
    found = chosen().native
    assert found is not None
    return found


# --- attention --------------------------------------------------------------------------------------------------------


def plain(query_HD, keys_KTD, values_KTD, options: Options) -> torch.Tensor:
    """One query against all keys of its row, in float64; (H, D)."""
    shared = query_HD.shape[0] // keys_KTD.shape[0]
    keys, values = (x.double().repeat_interleave(shared, 0) for x in (keys_KTD, values_KTD))
    scores = (query_HD.double()[:, None] * keys).sum(-1) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.window is not None:
        scores[:, : max(0, keys.shape[1] - options.window)] = -torch.inf
    return (scores.softmax(-1)[..., None] * values).sum(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (30, 1.5)])
@pytest.mark.parametrize(("num_keys", "shared", "size"), [(1, 1, 32), (2, 3, 64), (1, 5, 96), (3, 2, 128), (1, 4, 256)])
def test_decoding_is_plain_attention(functions, dtype, tolerance, window, softcap, num_keys, shared, size):
    """Prompts of several lengths, rows in any order, answers that outgrow a block of columns and the reserved room."""
    options = Options(window, size**-0.5, softcap)
    generator = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    prompts, group_R = [21, 1, 16], [2, 0, 1, 0, 2, 2]
    cache = KeyCache(torch.float32)
    cache.reserve(groups=3, prompt=21, rows=6, own=16)
    heads = Heads(*(random(1, n, sum(prompts), size) for n in (num_keys * shared, num_keys, num_keys)))
    PrefillPass(cache, range(3), prompts, [Shared()] * 3).attend(0, heads, options)
    assert cache.layers[0].blocked
    starts = [0, 21, 22]
    told = [[(x[0, :, starts[g] : starts[g] + prompts[g]]) for x in (heads.key, heads.value)] for g in group_R]
    places = Places.of(group_R, 3, CPU)
    for step in range(20):
        if step == 16:
            cache.reserve(own=32)
        new = Heads(*(random(6, n, 1, size) for n in (num_keys * shared, num_keys, num_keys)))
        found = DecodePass(cache, places, prompts, [step] * 6, CPU).attend(0, new, options)
        assert found.dtype == dtype
        for row in range(6):
            told[row] = [torch.cat((old, x[row]), 1) for old, x in zip(told[row], (new.key, new.value), strict=True)]
            expected = plain(new.query[row, :, 0], *told[row], options)
            torch.testing.assert_close(found[row, 0].double(), expected, atol=tolerance, rtol=0)


def test_rows_of_different_lengths_move(functions):
    """A row that moves to another's place takes its keys along."""
    generator = torch.Generator().manual_seed(2)
    cache, options = KeyCache(torch.float32), Options(None, 0.2)
    cache.reserve(groups=2, prompt=3, rows=2, own=32)
    heads = Heads(*(torch.randn(1, 1, 5, 32, generator=generator) for _ in range(3)))
    PrefillPass(cache, range(2), [3, 2], [Shared()] * 2).attend(0, heads, options)
    new = [Heads(*(torch.randn(2, 1, 1, 32, generator=generator) for _ in range(3))) for _ in range(19)]
    for step, each in enumerate(new[:18]):
        DecodePass(cache, Places.of([0, 1], 2, CPU), [3, 2], [step, step], CPU).attend(0, each, options)
    cache.move_row(1, 0, 18)
    cache.move_group(1, 0, 2)
    last = Heads(*(x[1:] for x in (new[18].query, new[18].key, new[18].value)))
    found = DecodePass(cache, Places.of([0], 1, CPU), [2], [18], CPU).attend(0, last, options)
    told = [
        torch.cat((getattr(heads, name)[0, :, 3:], *(getattr(each, name)[1] for each in new)), 1)
        for name in ("key", "value")
    ]
    torch.testing.assert_close(found[0, 0].double(), plain(last.query[0, :, 0], *told, options), atol=1e-6, rtol=0)


def test_layers_of_different_shapes_share_a_pass(functions):
    generator = torch.Generator().manual_seed(3)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    cache, options, shapes = KeyCache(torch.float32), Options(None, 0.1), [(1, 1, 32), (2, 4, 256)]
    cache.reserve(groups=1, prompt=2, rows=3, own=16)
    told = [Heads(*(random(1, n, 2, d) for n in (m * k, k, k))) for k, m, d in shapes]
    prefill = PrefillPass(cache, range(1), [2], [Shared()])
    for layer, heads in enumerate(told):
        prefill.attend(layer, heads, options)
    decode = DecodePass(cache, Places.of([0, 0, 0], 1, CPU), [2], [0, 0, 0], CPU)
    for layer, (keys, shared, size) in enumerate(shapes):
        new = Heads(*(random(3, n, 1, size) for n in (shared * keys, keys, keys)))
        found = decode.attend(layer, new, options)
        for row in range(3):
            whole = [
                torch.cat((old[0], x[row]), 1)
                for old, x in ((told[layer].key, new.key), (told[layer].value, new.value))
            ]
            expected = plain(new.query[row, :, 0], *whole, options)
            torch.testing.assert_close(found[row, 0].double(), expected, atol=2e-6, rtol=0)


def test_a_number_that_is_none_stays_none(functions):
    cache, options = KeyCache(torch.float32), Options(None, 0.2)
    cache.reserve(groups=1, prompt=2, rows=2, own=16)
    heads = Heads(*(torch.ones(1, 1, 2, 32, dtype=torch.bfloat16) for _ in range(3)))
    PrefillPass(cache, range(1), [2], [Shared()]).attend(0, heads, options)
    new = Heads(*(torch.ones(2, 1, 1, 32, dtype=torch.bfloat16) for _ in range(3)))
    new.query[1] = torch.nan
    found = DecodePass(cache, Places.of([0, 0], 1, CPU), [2], [0, 0], CPU).attend(0, new, options)
    assert (found[0] == 1).all()
    assert found[1].isnan().all()


# --- known decoders ---------------------------------------------------------------------------------------------------

WIDE = [kind for kind in CONFIGS if "wide heads" in kind]


@pytest.mark.parametrize("kind", WIDE)
def test_the_attention_of_known_decoders_is_computed_natively(functions, kind, monkeypatch):
    """The library's own attention is used in the prefill at most."""
    net, met = tiny(CONFIGS[kind]), set()
    real = Native.decode

    def never(*given, **more):
        raise AssertionError("computed by the library")

    monkeypatch.setattr(Native, "decode", lambda self, *given: met.add("decode") or real(self, *given))
    monkeypatch.setattr(DecodePass, "attend", never)
    Sampler(net, CharTokenizer(), "Q").generate([[1, 2, 3]], SamplingParams(n=2, max_tokens=4), [[1, 2]])
    assert met == {"decode"}


def test_a_sampler_that_goes_takes_nothing_with_it(functions):
    """No reference cycle keeps the weights alive until the next garbage collection."""
    net = tiny(CONFIGS["llama, wide heads"])
    gone = weakref.ref(next(net.parameters()))
    gc.collect()
    gc.disable()
    try:
        sampler = Sampler(net, CharTokenizer(), "Q")
        del sampler, net
        assert gone() is None
    finally:
        gc.enable()


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 33, 64])
@pytest.mark.parametrize(("outputs", "inputs", "bias"), [(96, 64, False), (100, 96, True), (7, 32, True)])
def test_products_are_rounded_once(functions, rows, outputs, inputs, bias):
    if not functions.products:
        pytest.skip("this processor has no AMX")
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, inputs, generator=generator).bfloat16() for n in (rows, outputs))
    bias_N = torch.randn(outputs, generator=generator).bfloat16() if bias else None
    packed = kernels.pack(weight, rows)
    assert packed.functions is functions
    found = kernels.linear(x, packed, bias_N)
    exact = x.double() @ weight.double().T + (0 if bias_N is None else bias_N.double())
    assert (found.double() - exact).abs().le(exact.abs() * 2**-8 + 1e-5).all()
    assert torch.equal(kernels.linear(x[-1:], packed, bias_N)[0], found[-1])


# --- the sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sampler_gives_the_same_without(functions, dtype):
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    net = tiny(config).to(dtype)
    prompts, seeds = [[1, 2, 3, 4, 5], [9] * 20], [[1, 2, 3], [4, 5, 6]]

    def answers() -> list:
        params = SamplingParams(n=3, max_tokens=40)
        return list(chain(*Sampler(net, CharTokenizer(), "Q").generate(prompts, params, seeds)))

    with_functions = answers()
    with kernels.without():
        without_functions = answers()
    for a, b in zip(with_functions, without_functions, strict=True):
        if dtype == torch.float32:
            assert a.token_ids == b.token_ids
        same = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), 40)
        assert a.logprobs[:same] == pytest.approx(b.logprobs[:same], abs=1e-5 if dtype == torch.float32 else 0.1)
