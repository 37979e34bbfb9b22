"""Frozen weights in 4 bits: the model merged and saved is the one that was trained. bitsandbytes works on CPU too."""

import copy
import importlib
import importlib.util
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny import TrueFloat64, as_near
from tiny_forests import batches, flat
from tiny_models import at, loaded, logits, trained_a_little

from togi.core.errors import InputError
from togi.model.adapter import LoraSettings, without_adapter
from togi.model.forest import plant
from togi.model.load import load
from togi.model.lora import add_lora
from togi.model.policy import Policy, plain_logprobs
from togi.model.save import save_model

if importlib.util.find_spec("bitsandbytes") is not None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
needs_library = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here")


WIDTHS = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}


def quantised(tmp_path, **changes):
    save_model(loaded(**WIDTHS, **changes), tmp_path / "base")
    return load(at(tmp_path / "base"), tmp_path, nf4=True), load(at(tmp_path / "base"), tmp_path)


@needs_library
@pytest.mark.parametrize("tied", [False, True])
def test_four_bits_are_near_the_weights_and_small(tied, tmp_path):
    """A weight is off by half the widest gap between NF4's levels, 0.152 of the largest in its block of 64, and by
    the rounding of that largest; the logits are those of the weights that the 4 bits represent."""
    model, plain = quantised(tmp_path, tie_word_embeddings=tied, initializer_range=0.02)
    start = logits(plain.net)
    for name, layer in model.net.model.layers.named_modules():
        if isinstance(layer, Linear4bit):
            weight = plain.net.model.layers.get_submodule(name).weight.data
            meant = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            off, largest = (blocks.abs().amax(1) for blocks in ((meant - weight).view(-1, 64), weight.view(-1, 64)))
            assert off.max() > 0 and (off < 0.17 * largest).all()
            weight.copy_(meant)
    torch.testing.assert_close(logits(model.net), logits(plain.net))
    assert (start - logits(plain.net)).abs().max() > 1e-3
    layer = model.net.model.layers[0].mlp.down_proj
    assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == 64 * 128 // 2
    assert type(model.net.lm_head) is torch.nn.Linear and not layer.weight.requires_grad


@needs_library
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_is_what_was_trained(tied, tmp_path):
    model, _ = quantised(tmp_path, tie_word_embeddings=tied)
    start = logits(model.net)
    net = add_lora(model.net, LoraSettings(rank=2, targets=("q_proj", "down_proj"), token_rows=(60, 61)), seed=0)
    torch.testing.assert_close(logits(net), start)
    trained_a_little(net)
    groups = batches()["many"]
    with torch.no_grad():
        forest_N, plain_N = Policy(net)(plant(groups)).logp_N, plain_logprobs(net, flat(groups))
    torch.testing.assert_close(forest_N, plain_N, rtol=1e-4, atol=1e-4)
    with without_adapter(net):
        torch.testing.assert_close(logits(net), start)
    before = logits(net)
    assert (before - start).abs().max() > 1e-2
    save_model(replace(model, net=net), tmp_path / "m")
    assert torch.equal(logits(net), before)  # saving leaves the trained network unchanged
    again = load(at(tmp_path / "m"), tmp_path).net
    assert all(type(module).__name__ != "Linear4bit" for module in again.modules())
    with TrueFloat64():
        exact = logits(copy.deepcopy(again).double())
    assert as_near(before, logits(again), exact, factor=4)  # before, the adapter was added separately


@needs_library
def test_rows_that_are_no_whole_number_of_blocks_are_refused(tmp_path):
    save_model(loaded(**{**WIDTHS, "intermediate_size": 96}), tmp_path / "base")
    with pytest.raises(InputError, match=r"multiple of 64 weights; layers\.0\.mlp\.down_proj has 96"):
        load(at(tmp_path / "base"), tmp_path, nf4=True)


def test_without_the_library_the_message_says_what_to_do(tmp_path, monkeypatch):
    save_model(loaded(), tmp_path / "base")
    real = importlib.import_module

    def absent(name, *rest):
        if name == "togi.model.quantised":
            raise ImportError("No module named 'bitsandbytes'")
        return real(name, *rest)

    monkeypatch.setattr("togi.model.load.importlib.import_module", absent)
    with pytest.raises(InputError, match=r"needs bitsandbytes.*togi\[quantised\]"):
        load(at(tmp_path / "base"), tmp_path, nf4=True)


@needs_library
def test_what_the_library_tells_at_its_start_stays_out_of_the_terminal():
    code = (
        "import togi.model.load, logging\n"
        "logging.getLogger('bitsandbytes.backends.cpu.ops').warning('Failed to load CPU gemm_4bit_forward')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in ended.stderr + ended.stdout
