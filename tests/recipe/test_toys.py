"""The toys of the real recipes run from the first stage to the last, on random weights at the smallest size."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from places import RECIPES, ROOT
from tiny_run import environment, tiny_model, togi
from transformers import AutoModelForCausalLM

from togi.core.codec import read_records
from togi.core.errors import InputError
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.report.collect import collect
from togi.stages.base import RECORDS_FILE

UPCYCLE = RECIPES / "toy" / "upcycle.py"
TOYS = sorted(path.stem for path in (RECIPES / "toy").glob("*.yaml") if not path.stem.endswith("-smoke"))
WRITTEN = {  # random weights write nothing readable, so their output is read from files instead
    "arrowideative": ("stages.drafts=null", "stages.curated.input=$seeds"),
    "ca-reward": ("stages.drafts=null", "stages.made.input=$seeds"),
    "llm-jp": (
        "stages.pairs_of_texts=null",
        "stages.pretrained.sources=[{documents: $wiki_ja, share: 0.5}, {documents: $wiki_en, share: 0.5}]",
    ),
    "vikhr": ("stages.grounded=null", "stages.tuned.chats=[$grandmaster]"),
}

REAL = {"llm-jp-8x13b": "llm-jp-3.1-instruct4-8x13b.yaml"}
"""The real recipes of toys that extend another toy."""
WITHOUT = dict.fromkeys(("llm-jp", "llm-jp-8x13b"), ("graded_1", "graded_2"))
"""Stages that need a judge's verdict in words, which no model of a toy's size produces."""


@pytest.fixture
def model(tmp_path) -> Path:
    """A random model with a context long enough for examples."""
    folder = tmp_path / "model"
    tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


def run(toy: str, model: Path, home: Path) -> Path:
    """Runs a toy's smallest size with `model` in place of all models from packages; returns the folder of the run."""
    return run_at(RECIPES / "toy" / f"{toy}-smoke.yaml", model, home, *WRITTEN[toy])


def run_at(path: Path, model: Path, home: Path, *changes: str) -> Path:
    """`run` for the recipe at `path`, with changes."""
    recipe = validate(read_tree(path))
    models = [name for name, spec in recipe.models.items() if spec.package]
    here = [
        f"models.{name}.{key}" for name in models for key in ("package=null", f"path={model}", "template=llama3-text")
    ]
    ended = togi(home, "run", str(path), *here, *changes, "--threads", "1", "--compute", "float32")
    assert ended.returncode == 0, ended.stderr
    return home / "runs" / recipe.name


def upcycling() -> ModuleType:
    """The script recipes/toy/upcycle.py as a module."""
    spec = importlib.util.spec_from_file_location("upcycle", UPCYCLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("toy", TOYS)
def test_a_toy_extends_the_real_recipe_and_keeps_its_stages(toy):
    text = (RECIPES / "toy" / f"{toy}.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("extends: ")]
    extended = RECIPES / "toy" / line.removeprefix("extends: ")
    assert (extended.parent == RECIPES / "toy") == (toy in REAL)
    real = validate(read_tree(RECIPES / REAL[toy] if toy in REAL else extended)).stages
    small = validate(read_tree(RECIPES / "toy" / f"{toy}.yaml")).stages
    assert tuple(name for name in real if name not in small) == WITHOUT.get(toy, ())
    assert [name for name, stage in small.items() if name in real and stage.type != real[name].type] == []


def test_arrowideative_runs_from_questions_to_a_policy_and_its_figures(model, tmp_path):
    folder = run("arrowideative", model, tmp_path / "home")
    stages = {stage.name: stage for stage in collect(folder).stages}
    assert all(stage.state == "done" for stage in stages.values())
    assert (folder / "policy" / "output" / "model" / "model.safetensors").exists()
    samples = read_records(folder / "policy" / "output" / "samples.parquet")[1]
    assert len(samples) == 2 * 2 * 4
    metrics = {figure.metric for figure in read_records(folder / "scores" / RECORDS_FILE)[1]}
    assert any("reward" in metric for metric in metrics)


def test_vikhr_runs_from_sft_to_smpo_on_the_best_answers_against_the_two_worst(model, tmp_path):
    folder = run("vikhr", model, tmp_path / "home")
    stages = {stage.name: stage for stage in collect(folder).stages}
    assert all(stage.state == "done" for stage in stages.values())
    answers, pairs = (read_records(folder / name / RECORDS_FILE)[1] for name in ("answers", "pairs"))
    assert len(answers) == 6 * 7 and len(pairs) == 6 * 2
    report = (folder / "report.html").read_text()
    assert "careful" in report and "Vikhr-Nemo-12B-Instruct-R-21-09-24" in report, "replayed, and published"
    assert (folder / "policy" / "output" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_ca_reward_runs_from_answers_to_an_accuracy_on_what_people_prefer(model, tmp_path):
    folder = run("ca-reward", model, tmp_path / "home")
    assert all(stage.state == "done" for stage in collect(folder).stages)
    assert (folder / "reward" / "output" / "model" / "model.safetensors").exists()
    figures = read_records(folder / "scores" / RECORDS_FILE)[1]
    assert [figure.count for figure in figures if figure.subject == "reward" and figure.metric == "accuracy"] == [41]


@pytest.mark.slow
def test_llm_jp_runs_from_texts_to_a_second_round_on_its_own_answers(model, tmp_path):
    folder = run("llm-jp", model, tmp_path / "home")
    assert all(stage.state == "done" for stage in collect(folder).stages)
    first, second = (read_records(folder / name / RECORDS_FILE)[1] for name in ("answers_1", "answers_2"))
    assert {answer.model for answer in first} == {"tuned"} and {answer.model for answer in second} == {"round_1"}
    assert (folder / "round_2" / "output" / "model" / "model.safetensors").exists()


def test_the_toy_of_a_mixture_trains_the_layers_that_the_real_recipe_trains():
    real, small = (
        validate(read_tree(RECIPES / name)).stages for name in (REAL["llm-jp-8x13b"], "toy/llm-jp-8x13b.yaml")
    )
    for stage in ("tuned", "round_1", "round_2"):
        assert small[stage].init == real[stage].init
        assert small[stage].lora.targets == real[stage].lora.targets
        assert small[stage].weights == real[stage].weights == "bfloat16"


def test_make_writes_the_mixture_where_its_toy_reads_it():
    base = validate(read_tree(RECIPES / "toy" / "llm-jp-8x13b.yaml")).models["base"]
    (made,) = re.findall(r"^UPCYCLED := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert base.package is None and Path(base.path) == (ROOT / made).resolve()


def test_a_mixture_of_equal_experts_is_the_dense_model_and_noise_makes_them_differ(model, tmp_path):
    folders = {noise: tmp_path / f"mixture-{noise}" for noise in (0.0, 0.5)}
    for noise, folder in folders.items():
        upcycling().upcycle(model, folder, experts=4, active=2, noise=noise, seed=3)
    dense, equal, noisy = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (model, *folders.values()))
    assert equal.config.model_type == "mixtral" and equal.config.num_local_experts == 4
    ids = torch.tensor([[5, 9, 33, 7, 60, 61]])
    with torch.no_grad():
        assert torch.allclose(equal(ids).logits, dense(ids).logits, atol=1e-5)
        assert not torch.allclose(noisy(ids).logits, dense(ids).logits, atol=1e-3)
    routers = [weight for name, weight in noisy.named_parameters() if name.endswith("gate.weight")]
    assert len(routers) == 2 and all(weight.std() > 0 for weight in routers)
    again = tmp_path / "again"
    upcycling().upcycle(model, again, experts=4, active=2, noise=0.5, seed=3)
    assert (again / "model.safetensors").read_bytes() == (folders[0.5] / "model.safetensors").read_bytes()


def test_a_model_that_cannot_become_a_mixture_is_refused(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    with pytest.raises(InputError, match="only a Llama without biases can become a Mixtral, found 'qwen3'"):
        upcycling().upcycle(model, tmp_path / "mixture", experts=4, active=2, noise=0.0, seed=3)
    assert not (tmp_path / "mixture").exists()


@pytest.mark.slow
def test_llm_jp_8x13b_trains_a_mixture_in_both_rounds_and_its_card_says_that_it_is_a_toy(model, tmp_path):
    home, mixture, mine = tmp_path / "home", tmp_path / "random-upcycled-4-experts", tmp_path / "mine.yaml"
    made = [sys.executable, str(UPCYCLE), str(mixture), "--model", str(model)]
    subprocess.run(made, env=environment(home), check=True)
    smoke = RECIPES / "toy" / "llm-jp-8x13b-smoke.yaml"
    mine.write_text(f"extends: {smoke}\nmodels:\n  base: {{path: {mixture}}}\n")
    folder = run_at(mine, model, home)
    stages = {stage.name: stage for stage in collect(folder).stages}
    assert all(stage.state == "done" for stage in stages.values())
    first, second = (read_records(folder / name / RECORDS_FILE)[1] for name in ("answers_1", "answers_2"))
    assert {answer.model for answer in first} == {"tuned"} and {answer.model for answer in second} == {"round_1"}
    for stage in ("tuned", "round_1", "round_2"):
        config = json.loads((folder / stage / "output" / "model" / "config.json").read_text())
        assert (config["model_type"], config["num_local_experts"]) == ("mixtral", 4)
    step = json.loads((folder / "tuned" / "metrics.jsonl").read_text().splitlines()[0])
    assert step["loss"] - step["nll"] > 0.015, "without the router loss: 2 active experts x its weight of 0.01"
    measured = {figure.subject for figure in read_records(folder / "health" / RECORDS_FILE)[1]}
    assert measured == {"base", "tuned", "round_1", "round_2"}
    report = (folder / "report.html").read_text()
    assert "toy-llm-jp-8x13b" in report and "random-upcycled-4-experts" in report
    ended = togi(home, "export", f"{mine}:round_2", str(tmp_path / "out"), "--question", "")
    assert ended.returncode == 0, ended.stderr
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert "A toy of an upcycled mixture of experts" in card and "the router is random" in card
