"""Model folders that are truncated, damaged, half fetched or mixed from several models: the preflight and loading
refuse them with the file and what to do, and never with a foreign exception."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BYTES, tiny_model, tiny_tokenizer

from togi.core.errors import InputError
from togi.core.sources import ModelSource, fingerprint
from togi.model.adapter import LoraSettings
from togi.model.inspect import context_of, inspect_model
from togi.model.load import LoadedModel, load, load_tokenizer
from togi.model.lora import add_lora
from togi.model.save import NOTHING, save_adapter, save_model
from togi.text.template import get_template

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model (base/), one in two shards (shards/) and an adapter on the first (adapter/)."""
    folder = tmp_path_factory.mktemp("models")
    net = tiny_model("llama", torch.float32, vocab_size=BYTES)
    model = LoadedModel(net=net, tokenizer=tiny_tokenizer(), template=get_template("chatml-nobos"), name="tiny")
    save_model(model, folder / "base")
    shutil.copytree(folder / "base", folder / "shards")
    (folder / "shards" / "model.safetensors").unlink()
    net.save_pretrained(folder / "shards", max_shard_size="60KB")
    adapted = replace(model, net=add_lora(load(at(folder / "base"), folder).net, LoraSettings(rank=2), seed=0))
    save_adapter(adapted, folder / "adapter", NOTHING)
    edit("adapter_config.json", base_model_name_or_path="base")(folder / "adapter")
    return folder


def at(folder: Path, **changes) -> ModelSource:
    return ModelSource(kind="path", name=str(folder), **changes)


Change = Callable[[Path], Any]


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, left: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:left])


def edit(name: str, **changes) -> Change:
    def change(folder: Path) -> None:
        value = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({k: v for k, v in value.items() if v != "absent"}))

    return change


def weights(change: Callable[[dict], Any], name: str = "model.safetensors") -> Change:
    def apply(folder: Path) -> None:
        found = load_file(folder / name)
        change(found)
        save_file(found, folder / name, metadata={"format": "pt"})

    return apply


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def first_shard(folder: Path) -> str:
    return min(path.name for path in folder.glob("model-*"))


def added_token(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|turn|>"] * 1 + [f"<|{i}|>" for i in range(5)], special_tokens=True)
    tokenizer.save_pretrained(folder)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
FAULTS: dict[str, tuple[str, Change, str]] = {
    "weights are a pointer": ("base", write("model.safetensors", POINTER), "git lfs pull"),
    "tokenizer is a pointer": ("base", write("tokenizer.json", POINTER), "tokenizer.json: it is a git-lfs pointer"),
    "config is a pointer": ("base", write("config.json", POINTER), "config.json: it is a git-lfs pointer"),
    "weights are cut": ("base", cut("model.safetensors", 20_000), "its header describes .* download it again"),
    "header is cut": ("base", cut("model.safetensors", 300), "is truncated; download it again"),
    "weights are empty": ("base", write("model.safetensors", b""), "model.safetensors: it is empty"),
    "weights are something else": (
        "base",
        write("model.safetensors", b"<html>not found</html>"),
        "not a safetensors file",
    ),
    "header is no JSON": ("base", write("model.safetensors", b"\x04" + bytes(7) + b"abcd"), "its header is damaged"),
    "header is odd": ("base", write("model.safetensors", b"\x0a" + bytes(7) + b'{"a": [1]}'), "its header is damaged"),
    "config is empty": ("base", write("config.json", b""), "config.json: it is empty"),
    "config is cut": ("base", cut("config.json", 100), "config.json: its JSON is damaged"),
    "config is a list": ("base", write("config.json", b"[]"), "it contains a list"),
    "config is deep": ("base", write("config.json", DEEP), "config.json"),
    "config is no text": ("base", write("config.json", b"\xff\xfe{}"), "not valid UTF-8"),
    "config names no type": ("base", edit("config.json", model_type="absent"), "names no model_type"),
    "config of an unknown type": ("base", edit("config.json", model_type="nonesuch"), "nonesuch"),
    "config with a wrong value": ("base", edit("config.json", hidden_size="wide"), "hidden_size"),
    "config with a wrong shape": ("base", edit("config.json", num_attention_heads=3), "not a multiple of the number"),
    "config of fewer layers": (
        "base",
        edit("config.json", num_hidden_layers=1),
        "layers that config.json does not have",
    ),
    "config of more layers": ("base", edit("config.json", num_hidden_layers=3), "weights are missing .*layers.2"),
    "config of another width": ("base", edit("config.json", intermediate_size=64), r"expected \[32, 64\]"),
    "quantised": ("base", edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "'gptqmodel'"),
    "a weight is missing": ("base", weights(lambda w: w.pop("model.norm.weight")), "1 weights are missing .*norm"),
    "card is damaged": ("base", write("togi.json", b"{"), "togi.json: its JSON is damaged"),
    "card without a template": ("base", write("togi.json", b"{}"), "togi.json: it contains no valid template"),
    "card with an odd template": ("base", write("togi.json", b'{"template": {"roles": 3}}'), "no valid template"),
    "tokenizer is cut": ("base", cut("tokenizer.json", 500), "tokenizer.json: its JSON is damaged"),
    "tokenizer is something else": ("base", write("tokenizer.json", b'{"a": 1}'), "the tokenizer cannot be loaded"),
    "tokenizer writes too much": (
        "base",
        added_token,
        r"has 264 rows of embeddings, .*\('<\|4\|>'\).*embeddings\(265\)",
    ),
    "a shard is missing": ("shards", lambda f: (f / first_shard(f)).unlink(), "weight files are missing: model-0"),
    "a shard is a pointer": ("shards", lambda f: write(first_shard(f), POINTER)(f), "git lfs pull"),
    "the index is missing": ("shards", remove("model.safetensors.index.json"), "are in several files"),
    "the index is empty": ("shards", write("model.safetensors.index.json", b"{}"), "no weight_map"),
    "the index leads away": (
        "shards",
        edit("model.safetensors.index.json", weight_map={"a": "../base/model.safetensors"}),
        "not a weight file in this folder",
    ),
    "the index names what is not there": (
        "shards",
        lambda f: edit("model.safetensors.index.json", weight_map={"model.norm.bias": first_shard(f)})(f),
        "names model.norm.bias in model-0",
    ),
    "adapter is a pointer": ("adapter", write("adapter_model.safetensors", POINTER), "git lfs pull"),
    "adapter is cut": ("adapter", cut("adapter_model.safetensors", 900), "download it again"),
    "adapter config is cut": ("adapter", cut("adapter_config.json", 50), "adapter_config.json: its JSON is damaged"),
    "adapter config is a list": ("adapter", write("adapter_config.json", b"[1]"), "it contains a list"),
    "adapter of an unknown kind": ("adapter", edit("adapter_config.json", peft_type="nonesuch"), "cannot be read"),
    "adapter without a base": ("adapter", edit("adapter_config.json", base_model_name_or_path=None), "is None; set"),
    "adapter whose base is gone": (
        "adapter",
        edit("adapter_config.json", base_model_name_or_path="./gone"),
        "'./gone'",
    ),
    "adapter upon itself": (
        "adapter",
        edit("adapter_config.json", base_model_name_or_path="../adapter"),
        "no such model",
    ),
    "adapter of another rank": ("adapter", edit("adapter_config.json", r=3), "the adapter does not fit its base"),
    "adapter of other layers": (
        "adapter",
        weights(
            lambda w: [w.update({k.replace(".1.", ".7."): w.pop(k)}) for k in list(w)], "adapter_model.safetensors"
        ),
        "the base has no layers for",
    ),
    "adapter of another width": (
        "adapter",
        weights(lambda w: w.update({k: v[:, :5].clone() for k, v in w.items()}), "adapter_model.safetensors"),
        "does not fit its base",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_folder_is_refused_by_check_and_by_loading(name, whole, tmp_path):
    which, change, says = FAULTS[name]
    shutil.copytree(whole, tmp_path / "m")
    change(tmp_path / "m" / which)
    source = at(tmp_path / "m" / which, template=None if "card" in name else "chatml-nobos")
    for look in (load_tokenizer, load):
        with pytest.raises(InputError, match=f"(?s){says}"):
            look(source, tmp_path)


@pytest.mark.parametrize("which", ["base", "shards", "adapter"])
def test_a_whole_folder_passes(which, whole):
    tokenizer, template = load_tokenizer(at(whole / which, template="chatml-nobos"), whole)
    again = load(at(whole / which, template="chatml-nobos"), whole)
    assert template == again.template and len(tokenizer) < BYTES  # padded: more embeddings than ids
    assert all(weight.requires_grad for weight in again.net.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_their_name(value, whole, tmp_path):
    shutil.copytree(whole / "base", tmp_path / "m")
    weights(lambda w: w["model.layers.1.mlp.up_proj.weight"][3].fill_(value))(tmp_path / "m")
    with pytest.raises(
        InputError, match=r"weight model\.layers\.1\.mlp\.up_proj\.weight contains numbers that are not fin"
    ):
        load(at(tmp_path / "m"), tmp_path)


def test_tied_heads_are_not_missing(tmp_path):
    net = tiny_model("llama", torch.float32, vocab_size=BYTES, tie_word_embeddings=True)
    model = LoadedModel(net=net, tokenizer=tiny_tokenizer(), template=get_template("chatml-nobos"), name="tiny")
    save_model(model, tmp_path / "m")
    assert "lm_head.weight" not in (inspect_model(at(tmp_path / "m")).weights or {})
    load_tokenizer(at(tmp_path / "m"), tmp_path)
    load(at(tmp_path / "m"), tmp_path)


@pytest.mark.parametrize("base", ["models/base", "../models/base", "./models/base"])
def test_a_relative_base_is_found_near_the_adapter_whatever_folder_the_shell_is_in(base, whole, tmp_path, monkeypatch):
    shutil.copytree(whole / "base", tmp_path / "models" / "base")
    shutil.copytree(whole / "adapter", tmp_path / "out" / "adapter")
    edit("adapter_config.json", base_model_name_or_path=base)(tmp_path / "out" / "adapter")
    source = at(tmp_path / "out" / "adapter")
    (tmp_path / "elsewhere" / "models").mkdir(parents=True)
    before = fingerprint(source)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert fingerprint(source) == before
    assert inspect_model(source).folder == tmp_path / "models" / "base"
    shutil.copytree(whole / "shards", tmp_path / "elsewhere" / "models" / "base")  # never mistaken for the base
    assert fingerprint(source) == before
    edit("config.json", rms_norm_eps=1e-3)(tmp_path / "models" / "base")
    assert fingerprint(source) != before  # with another base it is another model


def test_a_relative_base_is_found_beside_the_recipe(whole, tmp_path):
    shutil.copytree(whole / "base", tmp_path / "recipes" / "mine" / "base")
    shutil.copytree(whole / "adapter", tmp_path / "adapter")
    edit("adapter_config.json", base_model_name_or_path="mine/base")(tmp_path / "adapter")
    source = at(tmp_path / "adapter", beside=str(tmp_path / "recipes"))
    assert inspect_model(source).folder == tmp_path / "recipes" / "mine" / "base"


@pytest.mark.parametrize("base", ["/gone/base", "./base7", "gone", "a/b/c", r"..\base", "~/gone"])
def test_what_is_clearly_a_path_is_never_asked_of_a_hub(base, whole, tmp_path):
    shutil.copytree(whole / "adapter", tmp_path / "adapter")
    edit("adapter_config.json", base_model_name_or_path=base)(tmp_path / "adapter")
    for look in (fingerprint, inspect_model):
        with pytest.raises(InputError, match="there is no such model folder in"):
            look(at(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"n_layer": 2}, None),
        (
            {
                "max_position_embeddings": 128,
                "rope_scaling": {"type": "longrope"},
                "original_max_position_embeddings": 16,
            },
            16,
        ),
        (
            {
                "max_position_embeddings": 128,
                "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 8},
            },
            8,
        ),
        ({"max_position_embeddings": 128, "rope_parameters": {"rope_type": "dynamic"}}, 128),
    ],
)
def test_the_context_of_a_configuration(config, limit):
    assert context_of(config) == limit
