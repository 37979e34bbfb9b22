"""The toys of the real recipes run from the first stage to the last, on random weights at the smallest size."""

import json
from pathlib import Path

import pytest
from places import RECIPES
from tiny_run import tiny_model, togi

from togi.core.codec import read_records
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.report.collect import collect
from togi.stages.base import RECORDS_FILE

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

WITHOUT = {"llm-jp": ("graded_1", "graded_2")}
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
    path = RECIPES / "toy" / f"{toy}-smoke.yaml"
    specs = validate(read_tree(path)).models
    models = [name for name, spec in specs.items() if spec.package]
    here = [
        f"models.{name}.{key}" for name in models for key in ("package=null", f"path={model}", "template=llama3-text")
    ]
    ended = togi(home, "run", str(path), *here, *WRITTEN[toy], "--threads", "1", "--compute", "float32")
    assert ended.returncode == 0, ended.stderr
    return home / "runs" / f"toy-{toy}-smoke"


@pytest.mark.parametrize("toy", TOYS)
def test_a_toy_extends_the_real_recipe_and_keeps_its_stages(toy):
    text = (RECIPES / "toy" / f"{toy}.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("extends: ")]
    real = validate(read_tree(RECIPES / "toy" / line.removeprefix("extends: "))).stages
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
