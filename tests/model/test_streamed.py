"""Saving weights one layer at a time writes the same bytes as the library does for the whole network in memory."""

import copy
import gc
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import at, loaded, logits, trained_a_little

from togi.model.adapter import LoraSettings
from togi.model.card import CARD
from togi.model.load import LoadedModel, load
from togi.model.lora import add_lora, merged
from togi.model.reward_model import add_scalar_head
from togi.model.save import check_saved, save_model
from togi.model.shards import stored_shapes, stored_weights, write_weights
from togi.model.streamed import SavedNetwork
from togi.train import usage

needs_library = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here")
WIDTHS: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}


def whole(model: LoadedModel, folder: Path, dtype: torch.dtype, **options) -> dict[str, bytes]:
    """The files that the library writes for the network, merged in memory and its weights cast one by one."""
    net = copy.deepcopy(model.net)
    if hasattr(net, "peft_config"):
        net = merged(net, dtype)
    cast = {weight.data_ptr(): weight.to(dtype) for weight in net.state_dict().values() if weight.is_floating_point()}
    state = {name: cast.get(weight.data_ptr(), weight) for name, weight in net.state_dict().items()}
    net.save_pretrained(folder, state_dict=state, **options)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*")}


def held(model: LoadedModel, folder: Path, dtype: torch.dtype) -> None:
    """Saves a model and compares each byte; the trained model stays unchanged, and the saved one equals it."""
    before = {name: weight.clone() for name, weight in model.net.state_dict().items() if torch.is_tensor(weight)}
    expected = whole(model, folder / "whole", dtype)
    save_model(model, folder / "m", dtype=dtype)
    assert files(folder / "m") == expected
    assert (folder / "m" / CARD).exists()
    assert check_saved(model, folder / "m") == []
    assert all(torch.equal(weight, before[name]) for name, weight in model.net.state_dict().items() if name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_a_network_without_an_adapter(kind, dtype, tmp_path):
    held(loaded(kind), tmp_path, dtype)


def test_experts_under_other_names(tmp_path):
    held(loaded("qwen3_moe"), tmp_path, torch.float32)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3_moe"])
def test_weights_to_send_are_those_of_the_saved_file(kind, tmp_path):
    network = SavedNetwork(loaded(kind).net, torch.bfloat16)
    write_weights(network, tmp_path)
    sent, shapes = dict(stored_weights(network)), dict(stored_shapes(network))
    stored = load_file(tmp_path / "model.safetensors")
    assert list(sent) == list(shapes) and sorted(sent) == sorted(stored)
    assert all(torch.equal(sent[name], stored[name]) for name in stored)
    assert all((shape.shape, shape.dtype) == (sent[name].shape, sent[name].dtype) for name, shape in shapes.items())


ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all linear": ({}, {}),
    "rows of a tied head": ({"tie_word_embeddings": True}, {"targets": ("q_proj",), "token_rows": (60, 61)}),
    "a tied head": ({"tie_word_embeddings": True}, {"targets": ("lm_head", "down_proj")}),
    "biases": ({"attention_bias": True}, {"rslora": True}),
}


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beneath", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_merged(case, beneath, saved, tmp_path):
    changes, settings = ADAPTERS[case]
    model = loaded(dtype=beneath, **changes)
    net = trained_a_little(add_lora(model.net, LoraSettings(rank=2, **settings), seed=0))
    held(replace(model, net=net), tmp_path, saved)


def test_a_head_that_is_trained_whole_beside_an_adapter(tmp_path):
    model = add_scalar_head(loaded(), seed=1)
    net = add_lora(model.net, LoraSettings(rank=2, full=("score",)), seed=1)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * weight.requires_grad
    held(replace(model, net=net), tmp_path, torch.float32)


@needs_library
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beneath", [torch.float32, torch.bfloat16], ids=str)
def test_four_bits_are_written_out(beneath, saved, tmp_path):
    save_model(loaded(**WIDTHS), tmp_path / "base")
    model = load(at(tmp_path / "base"), tmp_path, nf4=True, dtype=beneath)
    settings = LoraSettings(rank=2, targets=("q_proj", "down_proj"), token_rows=(60, 61))
    held(replace(model, net=trained_a_little(add_lora(model.net, settings, seed=0))), tmp_path, saved)


@needs_library
def test_a_model_that_is_stored_in_four_bits_is_saved_in_plain_weights(tmp_path):
    save_model(loaded(**WIDTHS), tmp_path / "base")
    four = load(at(tmp_path / "base"), tmp_path, nf4=True)
    save_model(four, tmp_path / "m")
    assert check_saved(four, tmp_path / "m") == []
    torch.testing.assert_close(logits(load(at(tmp_path / "m"), tmp_path).net), logits(four.net))


def test_a_model_in_several_files_has_the_librarys_index(tmp_path):
    model = loaded("mixtral")
    expected = whole(model, tmp_path / "whole", torch.float32, max_shard_size="40KB")
    assert len(expected) > 3
    (tmp_path / "m").mkdir()
    write_weights(SavedNetwork(model.net, torch.float32), tmp_path / "m", largest="40KB")
    assert files(tmp_path / "m") == expected


def memory_of_saving(folder: Path) -> tuple[int, int]:
    """Bytes at the peak of saving and checking a model, and of one of its layers."""
    widths: dict[str, Any] = {"hidden_size": 512, "head_dim": 64, "num_attention_heads": 8, "intermediate_size": 2048}
    model = loaded(num_hidden_layers=12, dtype=torch.bfloat16, **widths)
    layer = 4 * sum(weight.numel() for weight in model.net.model.layers[0].parameters())
    net: Any = add_lora(model.net, LoraSettings(rank=2), seed=0)
    model, here = replace(model, net=net), torch.device("cpu")
    for each in (folder.with_name("first"), folder):  # libraries and buffers are made on first use
        usage.begin_peak(here)
        before = usage.used(here)
        save_model(model, each, dtype=torch.float32)
        assert check_saved(model, each) == []
    return usage.peak(here) - before, layer


def test_saving_and_checking_hold_a_layer_and_no_second_model(tmp_path):
    """In a process of its own, whose heap has no holes that other tests left."""
    code = (
        "import sys; from pathlib import Path; from test_streamed import memory_of_saving; "
        "print(*memory_of_saving(Path(sys.argv[1])))"
    )
    there = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        env={**os.environ, "PYTHONPATH": there},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, layer = map(int, done.stdout.split())
    assert peak < 4 * layer < (tmp_path / "m" / "model.safetensors").stat().st_size / 2


@needs_library
def test_of_weights_that_are_in_four_bits_no_page_of_the_file_is_kept(tmp_path):
    widths: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "intermediate_size": 1024}
    save_model(loaded(num_hidden_layers=4, **widths), tmp_path / "m")
    plain = load(at(tmp_path / "m"), tmp_path)
    assert kept_pages(tmp_path / "m") > 10 * 2**20  # the library maps weights that it need not change
    del plain
    gc.collect()
    model = load(at(tmp_path / "m"), tmp_path, nf4=True)
    assert kept_pages(tmp_path / "m") < 2**20
    assert all(weight.isfinite().all() for weight in model.net.parameters())


def kept_pages(folder: Path) -> int:
    """Bytes of this process's memory that are pages of files in `folder`."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            inside = f"{folder}/" in line
        elif inside and name == "Rss:":
            found += 1024 * int(rest[0])
    return found
