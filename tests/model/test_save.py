"""Saving: the saved model is the trained one, is checked once it is written, and ends answers where togi does."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tiny_models import QUESTION, at, ended_by, loaded, said, speaker
from transformers import AutoModelForCausalLM, AutoTokenizer

from togi.core.files import read_json
from togi.model.folders import atomic_folder
from togi.model.load import load
from togi.model.policy import Policy
from togi.model.save import check_saved, save_model
from togi.stages.context import Context, Control
from togi.stages.models import keep_model
from togi.stages.training.sft import TrainSft

# --- the check --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_a_network_with_parts_of_ours_is_held_against_the_librarys(kind, dtype, tmp_path):
    model = loaded(kind, dtype=dtype)
    Policy(model.net)  # plugs in our attention and compiled parts
    save_model(model, tmp_path / "m")
    assert check_saved(model, tmp_path / "m") == []


def test_a_damaged_save_is_noticed(tmp_path):
    model = loaded()
    save_model(model, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    (problem,) = check_saved(model, tmp_path / "m")
    assert "model.norm.weight differs from the trained one" in problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_configuration_that_describes_another_network_is_noticed(dtype, tmp_path):
    model = loaded(dtype=dtype)
    save_model(model, tmp_path / "m")
    change(tmp_path / "m" / "config.json", lambda config: config["rope_parameters"].update(rope_theta=7.0))
    (problem,) = check_saved(model, tmp_path / "m")
    assert "does not describe" in problem


def test_a_folder_that_cannot_be_loaded_is_a_problem_and_no_error(tmp_path):
    model = loaded()
    save_model(model, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    (problem,) = check_saved(model, tmp_path / "m")
    assert "cannot be loaded" in problem


def test_a_check_that_fails_is_an_alarm_and_the_model_is_kept(tmp_path):
    events = []
    context = Context("policy", tmp_path, tmp_path, 0, {}, Control(send=events.append))
    model = loaded()
    model.net.config.rope_parameters = {**model.net.config.rope_parameters, "rope_theta": 7.0}  # not what the net uses
    keep_model(
        context,
        model,
        tmp_path / "output" / "model",
        TrainSft.model_validate({"type": "train.sft", "init": "$base", "chats": "$chats"}),
    )
    assert (tmp_path / "output" / "model" / "model.safetensors").exists()
    (told,) = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert str(tmp_path / "output" / "model") in told["message"] and "does not describe" in told["message"]
    assert [event["event"] for event in events] == ["alarm"]


def change(file: Path, by) -> None:
    value = json.loads(file.read_text())
    by(value)
    file.write_text(json.dumps(value))


# --- full disks -------------------------------------------------------------------------------------------------------


def weights(folder: Path) -> None:
    save_model(loaded(), folder)


def tokenizer(folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        tiny_tokenizer().save_pretrained(temporary)


@pytest.mark.parametrize("write", [weights, tokenizer])
def test_a_full_disk_is_an_error_of_the_system_whichever_library_writes(write, tmp_path):
    """The limit on a file's size stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


# --- where answers of a saved model end -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3])
def test_a_saved_model_ends_where_togi_ends(length, tmp_path):
    model = speaker()
    whole = said(ended_by(model, "\x01\x02"))  # a terminator that it never writes
    model = ended_by(model, whole[-length:])
    expected = said(model)
    assert expected.endswith(model.template.terminator)
    save_model(model, tmp_path / "m")
    net, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "m"), AutoTokenizer.from_pretrained(tmp_path / "m")
    rows = [{"role": m.role, "content": m.content} for m in QUESTION]
    asked = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = net.generate(**asked, do_sample=False, max_new_tokens=40, tokenizer=tokenizer if length > 1 else None)
    assert tokenizer.decode(made[0][asked["input_ids"].shape[1] :]) == expected
    saved = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    (terminator,) = tokenizer(expected[-1], add_special_tokens=False)["input_ids"]
    if length == 1:
        assert saved["eos_token_id"] == [2, terminator] and "stop_strings" not in saved
    else:
        assert saved["eos_token_id"] == 2 and saved["stop_strings"] == [whole[-length:]]


def test_saving_again_adds_no_second_end(tmp_path):
    save_model(ended_by(speaker(), "q"), tmp_path / "first")
    once = (tmp_path / "first" / "generation_config.json").read_text()
    save_model(load(at(tmp_path / "first"), tmp_path), tmp_path / "second")
    assert (tmp_path / "second" / "generation_config.json").read_text() == once


def test_a_base_whose_way_to_generate_the_library_would_not_save_is_saved(tmp_path):
    """Published models set `do_sample: false` and a temperature; the library loads that but refuses to save it."""
    save_model(loaded(), tmp_path / "base")
    with_temperature = {"do_sample": False, "temperature": 0.9, "repetition_penalty": 1.1}
    change(tmp_path / "base" / "generation_config.json", lambda config: config.update(with_temperature))
    save_model(load(at(tmp_path / "base"), tmp_path), tmp_path / "m")
    saved = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert saved["repetition_penalty"] == 1.1 and saved["do_sample"] is False and "temperature" not in saved
    AutoModelForCausalLM.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "again")


def test_a_head_of_its_own_beside_a_setting_that_ties_it_is_saved_as_its_own(tmp_path):
    model = loaded(tie_word_embeddings=True)
    save_model(model, tmp_path / "tied")
    assert read_json(tmp_path / "tied" / "config.json")["tie_word_embeddings"] is True
    model.net.lm_head.weight = torch.nn.Parameter(2 * model.net.lm_head.weight.detach())
    save_model(model, tmp_path / "apart")
    assert read_json(tmp_path / "apart" / "config.json")["tie_word_embeddings"] is False
    assert torch.equal(load(at(tmp_path / "apart"), tmp_path).net.lm_head.weight, model.net.lm_head.weight)
