"""The chunked head: values, gradients, entropy, heads of other kinds, and how much it holds at once."""

import shutil

import pytest
import torch
from tiny import SHAPE, Largest, TrueFloat64, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig, FalconConfig, GPT2Config, GraniteConfig, LlamaConfig

from togi.core.errors import InputError
from togi.model.adapter import LoraSettings
from togi.model.forest import Sequence, plant
from togi.model.head import Head, token_logp
from togi.model.lora import add_lora
from togi.model.policy import Policy, check_head, plain_logprobs, unwrapped

N, H, V = 11, 8, 37


def reference(head: Head, hidden_NH, target_N, temperature: float):
    logits_NV = head(hidden_NH) / temperature
    logp_NV = logits_NV.log_softmax(-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    return logp_NV.gather(1, target_N[:, None])[:, 0], entropy_N


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, Doubled])
@pytest.mark.parametrize("chunk", [1, 4, None])
def test_chunks_equal_all_logits_at_once(softcap, bias, kind, chunk):
    torch.manual_seed(0)
    module = kind(H, V, bias=bias, dtype=torch.float64)
    head = Head(module, scale=0.7, softcap=softcap)
    hidden_NH = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    target_N, weight_N = torch.randint(V, (N,)), torch.randn(N, dtype=torch.float64)
    inputs = [hidden_NH, *module.parameters()]
    found = token_logp(head, hidden_NH, target_N, temperature=0.6, entropy=True, chunk=chunk)
    found_grads = torch.autograd.grad((found.logp_N * weight_N).sum(), inputs)
    logp_N, entropy_N = reference(head, hidden_NH, target_N, 0.6)
    grads = torch.autograd.grad((logp_N * weight_N).sum(), inputs)
    torch.testing.assert_close(found.logp_N, logp_N, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.entropy_N, entropy_N, rtol=0, atol=1e-12, check_layout=False)
    assert found.entropy_N is not None and not found.entropy_N.requires_grad
    for ours, plain in zip(found_grads, grads, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_a_frozen_head_gets_no_gradient():
    module = nn.Linear(H, V, bias=False).requires_grad_(False)
    hidden_NH = torch.randn(N, H, requires_grad=True)
    token_logp(Head(module), hidden_NH, torch.zeros(N, dtype=torch.int64)).logp_N.sum().backward()
    assert module.weight.grad is None and hidden_NH.grad is not None


@pytest.mark.parametrize(
    "module", [nn.Linear(8, 12, bias=True), nn.Sequential(nn.Linear(8, 12))], ids=["plain", "other"]
)
def test_without_targets_all_gradients_are_zero(module):
    """So an optimiser moves the head as it moves the rest, as it does with several ranks."""
    hidden = torch.randn(3, 8, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    token_logp(Head(module), hidden[:0], none).logp_N.sum().backward()
    for weight in (hidden, *module.parameters()):
        assert weight.grad is not None and not weight.grad.any()
        weight.grad = None


def test_bf16_hidden_states_give_fp32_log_probabilities():
    torch.manual_seed(0)
    module = nn.Linear(H, V, bias=False)
    hidden_NH = torch.randn(N, H, requires_grad=True)
    target_N = torch.randint(V, (N,))
    exact = token_logp(Head(module), hidden_NH, target_N).logp_N
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = token_logp(Head(module), hidden_NH, target_N, chunk=4).logp_N
    grads = [torch.autograd.grad(logp_N.sum(), [hidden_NH, module.weight]) for logp_N in (exact, rounded)]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)
    for a, b in zip(*grads, strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0.1)


def test_logits_never_exist_all_at_once():
    module = nn.Linear(H, 1000, bias=False)
    hidden_NH = torch.randn(64, H, requires_grad=True)
    with Largest() as largest:
        token_logp(
            Head(module), hidden_NH, torch.zeros(64, dtype=torch.int64), chunk=8, entropy=True
        ).logp_N.sum().backward()
    assert largest.numel == 8 * 1000  # a chunk of logits; the weight and its gradient are as large


class Products(TorchDispatchMode):
    """Counts products with a head's weight that make logits."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made += func.overloadpacket is torch.ops.aten.mm and out.shape[-1] == V
        return out


@pytest.mark.skipif(shutil.which("cc") is None, reason="logits are kept by compiled functions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_kept_are_those_that_are_made_again(dtype, monkeypatch):
    """Of 3 chunks none, one or all are kept; a second backward through the same graph finds no kept logits."""
    torch.manual_seed(0)
    module = nn.Linear(H, V, bias=False, dtype=dtype)
    hidden_NH, target_N = torch.randn(N, H, dtype=dtype, requires_grad=True), torch.randint(V, (N,))
    inputs, found = [hidden_NH, module.weight], []
    for kept in (0, 1, 3):
        monkeypatch.setattr("togi.model.head.KEPT_BYTES", kept * 4 * V * dtype.itemsize)
        with Products() as products:
            out = token_logp(Head(module), hidden_NH, target_N, entropy=True, chunk=4)
            grads = torch.autograd.grad(out.logp_N.square().sum(), inputs, retain_graph=True)
        assert products.made == 3 + (3 - kept)
        found.append([*out[:2], *grads])
        found.append([*out[:2], *torch.autograd.grad(out.logp_N.square().sum(), inputs)])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
    with torch.no_grad(), Products() as products:
        token_logp(Head(module), hidden_NH, target_N, chunk=4)
    assert products.made == 3


def sequences() -> list[Sequence]:
    ids = (5, 9, 33, 7, 60, 61, 62)
    return [Sequence(ids[:3] + tail, (False,) * 3 + (True,) * len(tail)) for tail in ((7, 60, 61), (8, 62))]


def lora_head(net):
    adapted = add_lora(net, LoraSettings(rank=2, targets=("lm_head", "q_proj")), seed=3)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # starts at zero, so that the adapter changes nothing
            nn.init.normal_(weight, std=0.3)
    return adapted


@pytest.mark.parametrize("entropy", [False, True])
def test_an_adapter_on_the_head_is_part_of_it(entropy):
    with TrueFloat64():
        net = lora_head(tiny_model("gemma3"))
        out = Policy(net, chunk=2)(plant([sequences()]), temperature=0.8, entropy=entropy)
        expected = plain_logprobs(net, sequences(), temperature=0.8)
    params = [p for p in net.parameters() if p.requires_grad]
    ours, plain = (torch.autograd.grad(x.sum(), params) for x in (out.logp_N, expected))
    torch.testing.assert_close(out.logp_N, expected, rtol=0, atol=1e-10)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    with net.disable_adapter():
        without = Policy(net)(plant([sequences()])).logp_N
    assert (without - out.logp_N).abs().max() > 1e-3


def scaled(config_class, **extra):
    return AutoModelForCausalLM.from_config(config_class(**SHAPE, **extra), dtype=torch.float64).eval()


@pytest.mark.parametrize(
    ("config", "extra"), [(CohereConfig, {"logit_scale": 0.3}), (GraniteConfig, {"logits_scaling": 4.0})]
)
def test_scaled_heads_are_known(config, extra):
    torch.manual_seed(0)
    net = scaled(config, **extra)
    with TrueFloat64(), torch.no_grad():
        torch.testing.assert_close(
            Policy(net)(plant([sequences()])).logp_N, plain_logprobs(net, sequences()), rtol=0, atol=1e-10
        )


def test_an_unknown_head_is_refused():
    net = tiny_model("llama")
    net.forward_plain, net.forward = net.forward, lambda *a, **k: _tripled(net.forward_plain(*a, **k))
    with pytest.raises(InputError, match="something unknown"):
        check_head(net)


def _tripled(out):
    out.logits = out.logits * 3
    return out


def test_absolute_positions_work_too():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with TrueFloat64(), torch.no_grad():
        policy = Policy(net)
        torch.testing.assert_close(
            policy(plant([sequences()])).logp_N, plain_logprobs(net, sequences()), rtol=0, atol=1e-10
        )
    assert not policy.apart


def test_a_model_without_the_attention_interface_runs_apart_and_says_so(caplog):
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=96, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=False)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        policy = Policy(net)
        found, expected = policy(plant([sequences()])).logp_N, plain_logprobs(net, sequences())
    assert policy.apart and "computing each sequence apart" in caplog.text
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "apart"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, False),
        ({"attention_chunk_size": 4}, True),
    ],
)
def test_neighbours_change_nothing_within_the_context(extra, apart):
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **extra), dtype=torch.float64).eval()
    long = Sequence(tuple(i % 96 for i in range(3, 3 + SHAPE["max_position_embeddings"])), (False, True) * 128)
    with torch.no_grad():
        policy, expected = Policy(net), plain_logprobs(net, sequences())
        found = policy(plant([sequences(), [long]])).logp_N[: len(expected)]
    assert policy.apart == apart
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_attention_in_both_directions_is_refused():
    net = AutoModelForCausalLM.from_config(LlamaConfig(**{**SHAPE, "use_bidirectional_attention": True}))
    with pytest.raises(InputError, match="use_bidirectional_attention"):
        Policy(net)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(InputError, match="temperature"):
        token_logp(Head(nn.Linear(H, V)), torch.zeros(1, H), torch.zeros(1, dtype=torch.int64), temperature=0.0)


def test_only_models_of_the_library_are_taken():
    with pytest.raises(InputError, match="Linear is not a model"):
        unwrapped(nn.Linear(1, 1))
