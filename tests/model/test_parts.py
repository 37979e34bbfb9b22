"""A rank that reads only its part of the weights has the same bits as one that reads all of them and keeps its part."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import at, loaded
from together import together
from torch import Tensor
from torch.distributed.tensor import DTensor

from togi.core.errors import InputError
from togi.core.ranks import Ranks
from togi.model.forest import Sequence, plant
from togi.model.load import LoadedModel, inspect, load_inspected, load_unread
from togi.model.policy import Policy
from togi.model.save import save_model
from togi.train.sharding import ShardedModel

CPU = torch.device("cpu")
FOREST = plant([[Sequence((5, 9, 33, 7, 60, 61), (False,) * 2 + (True,) * 4)]])


def own_part(policy: Policy, ranks: Ranks, model: LoadedModel) -> tuple[dict[str, Tensor], Tensor]:
    """This rank's part of the weights by name, the buffers, and log-probabilities."""
    module = ShardedModel(policy, ranks, model.read).module
    weights = {name: weight.to_local() for name, weight in module.named_parameters(remove_duplicate=False)}
    assert all(isinstance(weight, DTensor) and weight.requires_grad for weight in module.parameters())
    with torch.no_grad():
        return weights | dict(module.named_buffers()), module(FOREST).logp_N


def both_ways(ranks: Ranks, folder: Path, dtype: torch.dtype) -> dict[str, int]:
    source = at(folder, template="chatml-nobos")
    facts = inspect(source, folder)
    unread = load_unread(source, facts, dtype=dtype, device=CPU)
    whole = load_inspected(source, facts, dtype=dtype)
    assert unread is not None and all(weight.is_meta for weight in unread.net.parameters())
    assert unread.net.config.to_dict() == whole.net.config.to_dict()
    assert unread.net.generation_config.to_dict() == whole.net.generation_config.to_dict()
    weights, logp_N = own_part(Policy(unread.net, check=False), ranks, unread)
    expected, expected_N = own_part(Policy(whole.net), ranks, whole)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights), "other bits"
    assert all(weights[name].dtype == expected[name].dtype for name in weights)
    assert torch.equal(logp_N, expected_N)
    return {name: weight.numel() for name, weight in weights.items()}


CASES: list[tuple[str, torch.dtype, torch.dtype, dict[str, Any]]] = [
    ("llama", torch.bfloat16, torch.float32, {"tie_word_embeddings": True}),
    ("llama", torch.float32, torch.float32, {"attention_bias": True}),
    ("llama", torch.float32, torch.bfloat16, {}),
    ("gemma3", torch.float32, torch.float32, {"tie_word_embeddings": True}),
    ("mixtral", torch.bfloat16, torch.float32, {}),
    ("qwen3_moe", torch.float32, torch.float32, {}),
]


@pytest.mark.parametrize(("kind", "stored", "dtype", "changes"), CASES)
def test_a_part_that_is_read_has_the_bits_of_one_that_is_kept(kind, stored, dtype, changes, tmp_path):
    save_model(loaded(kind, stored, **changes), tmp_path / "m")
    first, second = together(2, both_ways, tmp_path / "m", dtype)
    assert first["net.lm_head.weight"] + second["net.lm_head.weight"] == loaded(kind).net.lm_head.weight.numel()


@pytest.mark.parametrize("width", [12, 16])
def test_three_ranks_divide_four_experts(width, tmp_path):
    """Along the last dimension; if that is not a multiple of three either, one rank has no expert."""
    widths = {"hidden_size": width, "head_dim": 4, "num_attention_heads": width // 4, "intermediate_size": width}
    model = loaded("mixtral", num_key_value_heads=width // 4, **widths)
    save_model(model, tmp_path / "m")
    found = together(3, both_ways, tmp_path / "m", torch.float32)
    sizes = [each["net.model.layers.0.mlp.experts.down_proj"] for each in found]
    experts = model.net.config.num_local_experts
    assert sizes == [experts * width**2 // 3] * 3 if width % 3 == 0 else sizes[2] == 0


def read_whole(folder: Path, **changes: Any) -> bool:
    source = at(folder, template="chatml-nobos", **changes)
    return load_unread(source, inspect(source, folder), dtype=torch.float32, device=CPU) is None


def test_weights_that_are_added_tied_or_merged_are_read_whole(tmp_path):
    save_model(loaded(), tmp_path / "m")
    assert not read_whole(tmp_path / "m")
    assert read_whole(tmp_path / "m", tokens=("<new>",))
    save_model(loaded(tie_word_embeddings=True), tmp_path / "tied")
    weights = load_file(tmp_path / "tied" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "tied" / "model.safetensors", {"format": "pt"})
    assert read_whole(tmp_path / "tied")


def broken(ranks: Ranks, folder: Path) -> str:
    source = at(folder, template="chatml-nobos")
    model = load_unread(source, inspect(source, folder), dtype=torch.float32, device=CPU)
    assert model is not None
    try:
        ShardedModel(Policy(model.net, check=False), ranks, model.read if ranks.rank else None)
    except InputError as error:
        return str(error)
    return ""


def test_the_rank_that_reads_a_weight_that_is_not_finite_names_it(tmp_path):
    save_model(loaded(), tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][-1, 0] = torch.inf
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    first, second = together(2, broken, tmp_path / "m")
    assert first == "" and "weight model.layers.1.mlp.up_proj.weight contains numbers" in second
