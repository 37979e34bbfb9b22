"""`togi export` as a user runs it, on tiny models: files, output and refusals."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import serving
from tiny import tiny_model as tiny_network
from tiny_models import at, logits, shaken
from tiny_run import tiny_model, togi
from tokenizers_made import unigram
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from togi.cli import main
from togi.core.errors import InputError
from togi.core.files import read_json, write_json
from togi.core.sampling import PRESETS
from togi.model.adapter import LoraSettings
from togi.model.card import About, origin_of
from togi.model.likeness import score_likeness
from togi.model.load import LoadedModel, inspect, load
from togi.model.lora import add_lora
from togi.model.reward_model import add_scalar_head
from togi.model.save import save_adapter, save_model
from togi.text.template import get_template


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter on it, the two merged with a card that names the base, and a reward model."""
    found = tmp_path_factory.mktemp("export")
    tiny_model(found / "base")
    base = load(at(found / "base", template="chatml"), found)
    origin = origin_of(at(found / "base"), inspect(at(found / "base"), found))
    save_model(add_scalar_head(load(at(found / "base", template="chatml"), found), seed=1), found / "rm")
    adapted = replace(base, net=shaken(add_lora(base.net, LoraSettings(rank=2), seed=0)), origin=origin)
    save_adapter(adapted, found / "adapter", About(origin=origin))
    save_model(adapted, found / "trained", About(origin=origin, stage="train.sft"))
    return found


@pytest.fixture
def run(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command; returns the exit code, standard output and standard error."""
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["export", *map(str, words)])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


def library_logits(folder: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def test_a_merged_model_is_the_librarys_and_keeps_its_card(run, folder, tmp_path):
    code, out, _ = run(folder / "trained", tmp_path / "out")
    assert code == 0 and f"wrote {tmp_path / 'out' / 'model.safetensors'}" in out
    torch.testing.assert_close(library_logits(tmp_path / "out"), library_logits(folder / "trained"), rtol=0, atol=0)
    assert (tmp_path / "out" / "togi.json").read_bytes() == (folder / "trained" / "togi.json").read_bytes()
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # a library writes weights with permissions for the owner only
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_export_takes_along_what_evaluations_know_of_its_training(run, folder, tmp_path):
    stage = tmp_path / "store" / "train.sft-1"
    shutil.copytree(folder / "trained", stage / "output" / "model")
    write_json(stage / "made_from.json", {"made_from": {}})
    write_json(stage / "learnt.json", ["00" * 8])
    code, out, _ = run(stage / "output" / "model", tmp_path / "out")
    assert code == 0 and "learnt.json has hashes of the training prompts" in " ".join(out.split())
    code, out, _ = run(tmp_path / "out", tmp_path / "again", "--json")
    assert code == 0 and "learnt.json" in json.loads(out)["files"]
    assert read_json(tmp_path / "again" / "learnt.json") == ["00" * 8]
    write_json(stage / "learnt.json", ["00" * 8] * 50_000)
    code, out, _ = run(stage / "output" / "model", tmp_path / "large", "--json")
    assert code == 0 and "learnt.json" not in json.loads(out)["files"], "it is not small"


def test_an_adapter_merged_and_alone(run, folder, tmp_path):
    code, out, _ = run(folder / "adapter", tmp_path / "merged", "--json")
    told = json.loads(out)
    assert code == 0 and told["likeness"]["merged"]["worst"] < 1e-4
    assert [*told["answers"]] == ["base", "trained", "merged"]
    assert told["answers"]["trained"] == told["answers"]["merged"]
    torch.testing.assert_close(
        library_logits(tmp_path / "merged"), library_logits(folder / "trained"), rtol=0, atol=1e-5
    )
    code, out, _ = run(folder / "adapter", tmp_path / "alone", "--format", "adapter", "--json")
    told = json.loads(out)
    assert code == 0 and "adapter_model.safetensors" in told["files"] and "model.safetensors" not in told["files"]
    assert told["likeness"]["adapter"]["worst"] < 1e-4
    assert told["notes"] == [
        f"its base is a folder on this machine ({folder / 'base'}); for use elsewhere, write a hub id into "
        "adapter_config.json"
    ]


def test_a_gguf_alone_is_left_and_every_form_has_answered(run, folder, tmp_path):
    code, out, err = run(folder / "adapter", tmp_path / "words", "--format", "gguf", "--type", "q8_0", "--json")
    told = json.loads(out)
    assert code == 0 and told["files"] == ["words-q8_0.gguf"] and told["kept"] == "q8_0"
    assert [path.name for path in (tmp_path / "words").iterdir()] == ["words-q8_0.gguf"]
    assert [*told["answers"]] == ["base", "trained", "merged", "gguf"]
    assert told["likeness"]["merged"]["worst"] < 1e-4 < told["likeness"]["gguf"]["worst"]
    assert "reading words-q8_0.gguf back with transformers" in err


def test_a_terminator_of_several_tokens_is_told_as_a_stop_string(run, folder, tmp_path):
    more = ("--template", "chatml", "--format", "gguf", "--sampling", "arrowideative")
    code, out, _ = run(folder / "base", tmp_path / "out", *more)
    assert code == 0 and "llama-cli: --reverse-prompt" in out and "out-f32.gguf" in out
    said = " ".join(out.split())
    assert "llama-cli: --temp 0.5 --top-p 0.95 --top-k 0 --min-p 0 --repeat-penalty 1.05" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["out-f32.gguf"]


def test_recommended_sampling_is_what_the_library_reads_back_and_uses(run, folder, tmp_path):
    shutil.copytree(folder / "trained", tmp_path / "m")
    path = tmp_path / "m" / "generation_config.json"
    other = {"do_sample": True, "temperature": 0.9, "top_k": 5, "typical_p": 0.5, "repetition_penalty": 1.3}
    before = read_json(path)
    write_json(path, before | other)
    code, out, _ = run(tmp_path / "m", tmp_path / "out", "--sampling", "vikhr-nemo", "--json")
    said = "recommended sampling (vikhr-nemo): temperature 0.3, top_k 40; in generation_config.json and togi.json"
    assert code == 0 and said in json.loads(out)["notes"]
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    values = PRESETS["vikhr-nemo"].drawing.model_dump(exclude={"max_tokens"})
    assert {name: getattr(found, name) for name in values} == values
    assert found.do_sample and found.typical_p is None and found.max_new_tokens is None
    assert found.stop_strings == before["stop_strings"]
    found.save_pretrained(tmp_path / "again")  # the library refuses settings that contradict each other
    net: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert net.generation_config.to_diff_dict() == found.to_diff_dict()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = net.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, tokenizer=tokenizer)
    assert ids.shape == (1, 5)
    card = read_json(tmp_path / "out" / "togi.json")
    assert card == read_json(folder / "trained" / "togi.json") | {
        "recommended": {**values, "max_tokens": 2048, "preset": "vikhr-nemo"}
    }
    assert run(tmp_path / "out", tmp_path / "twice")[0] == 0  # an export can be exported again, with all of it
    for name in ("togi.json", "generation_config.json"):
        assert read_json(tmp_path / "twice" / name) == read_json(tmp_path / "out" / name)


def test_an_adapter_keeps_recommended_sampling_for_togi(run, folder, tmp_path):
    more = ("--format", "adapter", "--sampling", "llm-jp-3.1", "--json", "--question", "")
    code, out, _ = run(folder / "adapter", tmp_path / "out", *more)
    told = json.loads(out)
    assert code == 0 and "generation_config.json" not in told["files"]
    assert told["notes"][-1] == (
        "recommended sampling (llm-jp-3.1): temperature 0.7, top_p 0.95, repetition_penalty 1.05; in togi.json"
    )
    assert read_json(tmp_path / "out" / "togi.json")["recommended"]["preset"] == "llm-jp-3.1"


def test_people_read_a_table_of_answers(run, folder, tmp_path):
    _, out, _ = run(folder / "adapter", tmp_path / "out", "--question", "Where do rivers begin?")
    lines = [line.strip() for line in out.splitlines()]
    (titles,) = [line for line in lines if line.startswith("Where do rivers begin?")]
    assert titles.endswith("greedy answer")
    assert [line.split(" ")[0] for line in lines if line.split(" ")[0] in ("base", "trained")] == ["base", "trained"]
    code, out, _ = run(folder / "adapter", tmp_path / "silent", "--question", "")
    assert code == 0 and "greedy answer" not in out and "log-probability off" in out


ENDING = """\
{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<s>{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def test_answers_are_shown_without_their_terminator(run, folder, tmp_path):
    silent = load(at(folder / "base", template="chatml"), folder)
    with torch.no_grad():
        silent.net.lm_head.weight.zero_()  # all tokens are equally likely, so that it always writes the first one, <s>
    save_model(silent, tmp_path / "silent")
    (tmp_path / "ending.jinja").write_text(ENDING)
    recipe = "models: {silent: {path: silent, template: {file: ending.jinja, terminator: <s>}}}\n"
    stages = "stages: {some: {type: respond, prompts: $asked, models: [$silent]}}\n"
    (tmp_path / "asked.jsonl").write_text('{"question": "Why?"}\n')
    (tmp_path / "r.yaml").write_text(f"name: r\n{recipe}data: {{asked: {{path: asked.jsonl}}}}\n{stages}")
    code, out, err = run(f"{tmp_path / 'r.yaml'}:silent", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["answers"] == {"model": "", "merged": ""}


def test_a_base_that_changed_since_is_not_asked(run, folder, tmp_path):
    code, out, _ = run(folder / "trained", tmp_path / "out", "--json")
    told = json.loads(out)  # its card names a folder that is in no store
    assert code == 0 and [*told["answers"]] == ["trained", "merged"]
    assert told["notes"] == ["the base (base) is missing on this machine or has changed, so it was not asked"]


def test_the_base_that_a_stage_made_is_found_in_the_store(run, folder, tmp_path):
    made = tmp_path / "home" / "store" / "train.sft-0123456789abcdef" / "output" / "model"
    base = load(at(folder / "base", template="chatml"), tmp_path)
    save_model(base, made)
    save_model(base, tmp_path / "m", About(origin=origin_of(at(made), inspect(at(made), tmp_path))))
    assert [*json.loads(run(tmp_path / "m", tmp_path / "one", "--json")[1])["answers"]] == ["base", "trained", "merged"]
    (made / "generation_config.json").write_text("{}")
    assert [*json.loads(run(tmp_path / "m", tmp_path / "two", "--json")[1])["answers"]] == ["trained", "merged"]


def test_a_reward_model_has_one_label_and_the_same_scores_in_the_library(run, folder, tmp_path):
    code, out, _ = run(folder / "rm", tmp_path / "out", "--json")
    told = json.loads(out)
    assert code == 0 and len(told["scores"]) == 8
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": told["scores"][0]["text"]}, {"role": "assistant", "content": "I do not know."}]
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")["input_ids"]
    assert net.config.num_labels == 1
    with torch.no_grad():
        score = float(net(input_ids=ids).logits[0, 0])
    assert score == pytest.approx(told["scores"][0]["here"], abs=1e-5)


def test_a_hubs_reward_model_is_known_when_it_is_here(folder, tmp_path):
    files = {path.name: path.read_bytes() for path in (folder / "rm").iterdir()}
    with serving({"me/rm": files}) as address:
        more = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        ended = togi(tmp_path, "export", "me/rm", str(tmp_path / "out"), "--json", **more)
        assert ended.returncode == 0 and len(json.loads(ended.stdout)["scores"]) == 8, ended.stderr
        ended = togi(tmp_path, "export", "me/rm", str(tmp_path / "two"), "--format", "gguf", **more)
    assert ended.returncode == 2 and "a reward model cannot be written as GGUF" in ended.stderr


def test_scores_that_differ_are_told(folder):
    one, other = (load(at(folder / "rm"), folder, kind="scorer") for _ in range(2))
    with torch.no_grad():
        other.net.score.weight.mul_(1.01)
    with pytest.raises(InputError, match="scores probes differently"):
        score_likeness(one, other)


MISTAKES = [
    (("trained", "--type", "f16"), "--type goes with --format gguf"),
    (("rm", "--sampling", "vikhr-nemo"), "--sampling: a reward model writes no answers; leave it out"),
    (("rm", "--reward", "--format", "gguf"), "a reward model cannot be written as GGUF; use --format merged"),
    (("rm", "--format", "gguf"), "a reward model cannot be written as GGUF"),
    (("base", "--format", "adapter"), "has no adapter: the adapter is next to it, in "),
    (
        ("rm", "--format", "adapter"),
        "has no adapter: a reward model has a head that its base lacks, so it is saved whole",
    ),
    (("trained", "--revision", "main"), "--revision goes with a hub id"),
    (("nowhere",), "nowhere: there is no such file or folder"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_mistakes_are_told_and_leave_nothing(run, folder, tmp_path, words, said):
    code, out, err = run(folder / words[0], tmp_path / "out", *words[1:])
    assert code == 2 and said in err and out == "" and not (tmp_path / "out").exists()


def test_a_folder_with_files_in_it_is_never_written_over(run, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, err = run(folder / "trained", tmp_path / "out")
    assert code == 2 and "exists already; name a new folder" in err
    (tmp_path / "out" / "mine.txt").unlink()
    assert run(folder / "trained", tmp_path / "out")[0] == 0  # an empty folder is accepted


def test_a_tokenizer_that_llama_cpp_would_cut_otherwise_is_refused_and_nothing_is_left(run, tmp_path):
    net = tiny_network("llama", torch.float32, vocab_size=len(unigram()))
    model = LoadedModel(net=net, tokenizer=unigram(), template=get_template("chatml"), name="tiny")
    save_model(model, tmp_path / "m")
    code, _, err = run(tmp_path / "m", tmp_path / "out", "--format", "gguf")
    assert code == 3 and f"{tmp_path / 'm'}: its tokenizer is of type Unigram" in err and "use --format merged" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_what_differs_is_not_left_behind(run, folder, tmp_path, monkeypatch):
    """A faulty converter: rows of queries and keys are not paired."""
    monkeypatch.setattr("togi.model.gguf_write.written", lambda name, weight, config, form: weight.float())
    code, _, err = run(folder / "trained", tmp_path / "out", "--format", "gguf")
    assert code == 3 and "the export as gguf (f32) differs from the model" in err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("place", ["a-file/out", "loop/out", "x" * 300, "closed/out"])
def test_a_place_where_no_folder_can_be_is_told_in_one_line(run, folder, tmp_path, place):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "closed").mkdir(mode=0o500)
    if place == "closed/out" and os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    code, out, err = run(folder / "base", tmp_path / place, "--template", "chatml")
    assert code == 2 and out == "" and "cannot be written" in err and len(err.strip().splitlines()) == 1
