"""What training stages save: every combination of weights, adapter and base that the settings allow is trained for a
step, saved, loaded again and compared, with and without compiled parts. What cannot be saved is refused in advance."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_forests import batches
from tiny_models import at, loaded, trained_a_little
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from togi.core.errors import InputError
from togi.core.records import Chat, Provenance
from togi.core.settings import ModelRef
from togi.kernels import dispatch
from togi.model.forest import plant
from togi.model.load import load
from togi.model.policy import Policy
from togi.model.save import save_model
from togi.stages.context import Context, Control, Resolved
from togi.stages.models import keep_model, load_trainable
from togi.stages.training.resources import refuse_training
from togi.stages.training.reward import TrainReward
from togi.stages.training.sft import TrainSft

WIDTHS = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "intermediate_size": 128}
BASE = ModelRef("$base")
needs_library = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here")


def settings(**more) -> TrainSft:
    return TrainSft.model_validate({"type": "train.sft", "init": BASE, "chats": "$chats", "steps": 1, **more})


def base_folder(folder: Path, *, four_bits: bool = False, dtype: torch.dtype = torch.float32, **changes) -> Path:
    save_model(loaded(**WIDTHS, **changes), folder, dtype=dtype)
    if four_bits:
        way = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        net = AutoModelForCausalLM.from_pretrained(folder, quantization_config=way, dtype=dtype)
        for name in ("model.safetensors", "config.json"):
            (folder / name).unlink()
        net.save_pretrained(folder)
    return folder


def context(folder: Path, base: Path) -> Context:
    inputs = {BASE: Resolved("model", at(base))}
    made = Context("s", folder, folder, 0, inputs, Control(send=lambda event: None), compute="float32")
    made.data[Provenance(dataset="chats.jsonl", licence="CC0")] = None
    return made


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def compiled(request, monkeypatch) -> Iterator[None]:
    if not request.param:
        monkeypatch.setenv("TOGI_NATIVE", "0")
    dispatch.kernels.cache_clear()
    yield
    dispatch.kernels.cache_clear()


def allowed() -> Iterator[dict]:
    """Yields the combinations that the settings accept; adapters are saved both merged and alone, if possible."""
    adapters = (None, {}, {"token_rows": ["a", "b"]}, {"base": "nf4"}, {"targets": ["all-linear"]})
    for weights, lora in product(("float32", "bfloat16", "bfloat16-master"), adapters):
        save = "merged" if lora is not None and "base" in lora else "both"
        more = {"weights": weights, "lora": None if lora is None else {"rank": 2, "save": save, **lora}}
        try:
            settings(**more)
        except ValidationError:
            continue
        yield more


def told(folder: Path) -> list[str]:
    path = folder / "alarms.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Asserts equality up to rounding in `dtype`: the same weights enter different matrix products."""
    assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 5e-2) * expected.abs().max()


def logps(net) -> torch.Tensor:
    with torch.no_grad():
        return Policy(net)(plant(batches()["many"])).logp_N.detach()


@needs_library
@pytest.mark.parametrize("four_bits", [False, True], ids=["plain", "four bits"])
@pytest.mark.parametrize("more", allowed(), ids=str)
def test_what_is_trained_is_saved_and_loads_again(more, four_bits, compiled, tmp_path):
    base = base_folder(tmp_path / "base", four_bits=four_bits)
    stage, chosen = context(tmp_path, base), settings(save_dtype="float32", **more)
    if four_bits and chosen.lora is None:
        with pytest.raises(InputError, match="stored in 4 bits"):
            load_trainable(stage, BASE, chosen)
        return
    model = load_trainable(stage, BASE, chosen)
    start = logps(model.net)
    trained_a_little(model.net)
    trained = logps(model.net)
    assert (trained - start).abs().max() > 1e-3
    keep_model(stage, model, tmp_path / "output" / "model", chosen)
    assert told(tmp_path) == []
    kind = torch.bfloat16 if chosen.weights != "float32" else torch.float32
    for name in ("model", "adapter"):
        folder = tmp_path / "output" / name
        if folder.exists():
            close(logps(load(at(folder), tmp_path, dtype=kind).net), trained, kind)
    assert (tmp_path / "output" / "adapter").exists() == (chosen.lora is not None and chosen.lora.save == "both")


@pytest.mark.parametrize(
    ("stored", "asked", "saved"),
    [
        (torch.float32, "base", torch.float32),
        (torch.bfloat16, "base", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "float16", torch.float16),
    ],
)
def test_weights_are_saved_in_the_type_of_the_base_or_in_the_one_asked_for(stored, asked, saved, tmp_path):
    stage, chosen = context(tmp_path, base_folder(tmp_path / "base", dtype=stored)), settings(save_dtype=asked)
    model = load_trainable(stage, BASE, chosen)
    assert model.net.dtype == torch.float32
    keep_model(stage, model, tmp_path / "output" / "model", chosen)
    folder = tmp_path / "output" / "model"
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {saved}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(saved).removeprefix("torch.")
    assert told(tmp_path) == []


def test_what_float16_has_no_room_for_is_saved_in_float32(tmp_path, caplog):
    model = loaded()
    with torch.no_grad():
        model.net.model.norm.weight[0] = 1e5
    save_model(model, tmp_path / "m", dtype=torch.float16)
    assert load_file(tmp_path / "m" / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    assert "exceeds float16" in caplog.text


def test_an_adapter_is_a_folder_that_peft_loads_onto_the_base_that_it_names(tmp_path):
    base = base_folder(tmp_path / "base")
    stage, chosen = context(tmp_path, base), settings(lora={"rank": 2, "save": "adapter"})
    model = load_trainable(stage, BASE, chosen)
    trained_a_little(model.net)
    trained = logps(model.net)
    folder = tmp_path / "output" / "model"
    keep_model(stage, model, folder, chosen)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == sorted(config["target_modules"])  # equal work gives equal bytes
    assert not (folder / "model.safetensors").exists() and (folder / "tokenizer.json").exists()
    close(logps(AutoPeftModelForCausalLM.from_pretrained(folder)), trained, torch.float32)
    again = settings(lora={"rank": 2, "save": "adapter"}, init=BASE)
    with pytest.raises(InputError, match="it is an adapter itself"):
        load_trainable(context(tmp_path / "next", folder), BASE, again)
    load_trainable(context(tmp_path / "next", folder), BASE, settings(lora={"rank": 2}))


def test_the_card_says_what_the_model_was_made_of_and_nothing_of_the_run(tmp_path):
    cards = []
    for name in ("first", "second"):
        folder = tmp_path / name
        stage, chosen = context(folder, base_folder(folder / "base")), settings()
        source = replace(at(folder / "base"), licence="gemma", terms="no harm", inherit=True)
        stage.inputs[BASE] = Resolved("model", source)
        keep_model(stage, load_trainable(stage, BASE, chosen), folder / "output" / "model", chosen)
        cards.append({path.name: path.read_bytes() for path in (folder / "output" / "model").iterdir()})
    assert cards[0] == cards[1]
    card, readme = json.loads(cards[0]["togi.json"]), cards[0]["README.md"].decode()
    assert card["format"] == 2 and card["base"]["name"] == "base" and len(card["base"]["revision"]) == 64
    assert card["data"][0]["dataset"] == "chats.jsonl" and {"system", "sampling", "licence"} <= card.keys()
    for word in ("train.sft", "base", "chats.jsonl", "CC0", "<|im_end|>", "from_pretrained"):
        assert word in readme
    assert card["licence"] == "gemma" and "- Licence: gemma\n" in readme
    assert "- Model: base (gemma, no harm, binding)" in readme and "Binding terms above also apply" in readme
    assert [(row["dataset"], row["terms"], row["inherit"]) for row in card["sources"]] == [
        ("chats.jsonl", None, False),
        ("base", "no harm", True),
    ]
    again = context(tmp_path / "next", tmp_path / "first" / "output" / "model")  # models trained from it; its texts
    assert [source.dataset for source in again.lineage()] == ["chats.jsonl", "base"]
    (said,) = again.sourced([Chat(id="c", messages=())])
    assert [source.dataset for source in said.sources] == ["base"]


def test_the_summary_names_a_source_without_a_licence(tmp_path):
    stage, chosen = context(tmp_path, base_folder(tmp_path / "base")), settings()
    stage.data[Provenance(dataset="plain")] = None
    keep_model(stage, load_trainable(stage, BASE, chosen), tmp_path / "output" / "model", chosen)
    assert ("plain", "") in [(row["dataset"], row["licence"]) for row in stage.summary["sources"]]


QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_other_quantised_weights_cannot_be_trained(method):
    with pytest.raises(InputError, match=rf"m: its weights are quantised \(.*{method}\), which togi cannot train"):
        refuse_training(settings(lora={}), {"quantization_config": QUANTISED[method]}, "m")


def test_weights_in_four_bits_are_trained_by_one_process_with_an_adapter():
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    refuse_training(settings(lora={}), config, "m")
    with pytest.raises(InputError, match="cannot be updated"):
        refuse_training(settings(), config, "m")
    with pytest.raises(InputError, match="set processes: 1"):
        refuse_training(settings(lora={}, processes=2), config, "m")


def test_an_adapter_on_a_tied_head_is_not_saved_alone():
    lora = {"targets": ["lm_head"], "save": "adapter"}
    refuse_training(settings(lora=lora), {"tie_word_embeddings": False}, "m")
    with pytest.raises(InputError, match="changes both on its base"):
        refuse_training(settings(lora=lora), {"tie_word_embeddings": True}, "m")


def test_adapters_without_a_base_to_lie_on_are_refused():
    with pytest.raises(ValidationError, match="not stored anywhere"):
        settings(lora={"base": "nf4", "save": "both"})
    reward = {"type": "train.reward", "init": BASE, "pairs": "$pairs", "lora": {"save": "adapter"}}
    with pytest.raises(ValidationError, match="a head that its base lacks"):
        TrainReward.model_validate(reward)
