"""The memory of a mixture of experts: what it keeps for the backward pass, and how it is loaded."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from togi.core.sources import ModelSource
from togi.model.copied import ONE_BY_ONE
from togi.model.forest import Sequence, plant
from togi.model.inspect import inspect_model
from togi.model.lora import LoraSettings, add_lora
from togi.model.network import build
from togi.model.policy import Policy
from togi.model.sizes import Job, Shape, activations
from togi.train import usage

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "num_hidden_layers": 3}
TOKENS = 256


def kept_bytes(policy: Policy, tokens: int, autocast: bool) -> int:
    """Bytes that the forward pass keeps for the backward pass, without weights."""
    own = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = torch.randint(3, 96, (tokens // 64, 64), generator=torch.Generator().manual_seed(0)).tolist()
    forest = plant([[Sequence(tuple(ids), (False,) * 63 + (True,))] for ids in rows])
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with saved_tensors_hooks(note, lambda tensor: tensor), cast:
        policy(forest).logp_N.sum()
    return sum(kept.values())


def kept_and_predicted(rank: int, weights: str, compute: str, active: int, experts: int = 4) -> tuple[int, int]:
    net = tiny_model("mixtral", getattr(torch, weights), **SIZES, num_local_experts=experts, num_experts_per_tok=active)
    shape = Shape.of(net.config.to_dict())
    if rank:
        net = add_lora(net, LoraSettings(rank=rank, targets=ATTENTION), seed=0)
    job = Job(weights=weights, compute_dtype=compute, rank=rank, targets=ATTENTION)
    return kept_bytes(Policy(net, check=False), TOKENS, compute != weights), activations(shape, job, TOKENS)


@pytest.mark.parametrize(
    ("weights", "compute"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
@pytest.mark.parametrize("rank", [0, 4])
def test_what_each_active_expert_keeps_is_predicted(rank, weights, compute):
    kept_1, predicted_1 = kept_and_predicted(rank, weights, compute, 1)
    kept_4, predicted_4 = kept_and_predicted(rank, weights, compute, 4)
    assert predicted_4 == pytest.approx(kept_4, rel=0.1)
    assert predicted_4 - predicted_1 == pytest.approx(kept_4 - kept_1, rel=0.05)


def test_idle_experts_keep_nothing():
    few, many = (kept_and_predicted(4, "bfloat16", "bfloat16", 2, experts) for experts in (4, 16))
    assert many[0] == pytest.approx(few[0], rel=0.02) and many[1] == few[1]


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_model_that_is_converted_is_in_memory_once_while_it_is_loaded(kind, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 1536, "num_hidden_layers": 16 if kind == "llama" else 6}
    tiny_model(kind, torch.float32, **sizes).save_pretrained(tmp_path)
    file, cpu = (tmp_path / "model.safetensors").stat().st_size, torch.device("cpu")
    usage.begin_peak(cpu)
    before = usage.used(cpu)
    net = build(inspect_model(ModelSource(kind="path", name=str(tmp_path))), torch.bfloat16, "causal")
    assert usage.peak(cpu) - before < 0.85 * file  # half of it are the weights
    assert sum(weight.nbytes for weight in net.parameters()) == pytest.approx(file / 2, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("mixtral", torch.float32), ("mixtral", torch.bfloat16), ("llama", torch.bfloat16)]
)
def test_a_model_that_is_converted_is_what_the_library_loads(kind, dtype, tmp_path):
    made = tiny_model(kind, torch.float32)
    made.generation_config.temperature = 0.5
    made.generation_config.do_sample = True
    made.save_pretrained(tmp_path, max_shard_size="50KB")
    net = build(inspect_model(ModelSource(kind="path", name=str(tmp_path))), dtype, "causal")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    library = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert net.name_or_path == library.name_or_path and net.config.to_dict() == library.config.to_dict()
    assert net.generation_config.to_dict() == library.generation_config.to_dict()
    for name, weight in library.state_dict().items():
        assert torch.equal(net.state_dict()[name], weight), name
    assert ONE_BY_ONE not in os.environ


def test_settings_of_sampling_in_the_configuration_are_read(tmp_path):
    tiny_model("llama", torch.float32).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 7]}))
    net = build(inspect_model(ModelSource(kind="path", name=str(tmp_path))), torch.bfloat16, "causal")
    assert net.generation_config.eos_token_id == [2, 7]
