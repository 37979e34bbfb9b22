"""The recipes that togi ships: each fits its settings and its data, and the chain of all training stages runs."""

import pytest
from places import RECIPES
from tiny_run import tiny_model, togi

from togi.core.settings import references
from togi.recipe import graph
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.report.collect import collect
from togi.stages.data.importing import Import
from togi.stages.data.importing_work import read
from togi.stages.data.select import Select
from togi.stages.evaluation.evaluate import Evaluate
from togi.stages.training.grpo import TrainGrpo

FOLDER = RECIPES
RECIPES = sorted(FOLDER.rglob("*.yaml"))
TRAINED = ("pretrain", "sft", "reward", "dpo", "smpo", "grpo")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits_its_settings_and_its_data(path, monkeypatch):
    monkeypatch.setattr(graph, "fingerprint", lambda source: source.name)  # no weights are needed for this
    recipe = validate(read_tree(path))
    nodes = graph.build(recipe).nodes
    for node in nodes.values():
        if isinstance(node.settings, Import) and node.settings.path is not None:
            assert not read(node.settings, {}).dropped
    assert recipe.name == ("toy-" if path.parent.name == "toy" else "") + path.stem.replace(".", "-")
    assert all(spec.licence for spec in (*recipe.models.values(), *recipe.data.values()))
    used = [ref.name for settings in recipe.stages.values() for _, ref in references(settings)]
    assert [name for name in (*recipe.models, *recipe.data) if name not in used] == []


def recipe_in(page, folder):
    """The first recipe of a page, read with one-row files for the data that it names."""
    for name, row in {
        "seeds": '{"question": "Why?"}',
        "chats": '{"prompt": "Why?", "completion": "So."}',
        "pairs": '{"prompt": "Why?", "chosen": "So.", "rejected": "No."}',
    }.items():
        (folder / f"{name}.jsonl").write_text(row + "\n")
    text = (FOLDER.parent / page).read_text(encoding="utf-8")
    (folder / "page.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    return validate(read_tree(folder / "page.yaml"))


def test_the_recipe_in_the_readme_fits_in_six_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "fingerprint", lambda source: source.name)
    recipe = recipe_in("README.md", tmp_path)
    assert sorted(graph.build(recipe).nodes) == ["aligned", "chats", "pairs", "tuned"]
    assert len((tmp_path / "page.yaml").read_text().splitlines()) == 6


def test_the_recipe_in_the_design_evaluates_on_unseen_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "fingerprint", lambda source: source.name)
    recipe = recipe_in("docs/design.md", tmp_path)
    stages = recipe.stages
    assert len(graph.build(recipe).nodes) == len(stages) + 1
    policy, scores = stages["policy"], stages["scores"]
    assert isinstance(policy, TrainGrpo) and isinstance(scores, Evaluate)
    trained, tested = stages[policy.prompts.name], stages[scores.prompts.name]
    assert isinstance(trained, Select) and isinstance(tested, Select) and trained.input == tested.input
    assert trained.count is not None and trained.skip + trained.count <= tested.skip


def test_every_training_stage_has_an_example():
    found = {kind: validate(read_tree(FOLDER / "examples" / f"{kind}.yaml")) for kind in TRAINED}
    for kind, recipe in found.items():
        assert f"train.{kind}" in [stage.type for stage in recipe.stages.values()]


def test_the_chain_runs_on_a_random_model_and_its_report_shows_every_curve(tmp_path):
    tiny_model(tmp_path / "model")
    home = tmp_path / "home"
    changes = [
        f"models.base={{path: {tmp_path / 'model'}, template: chatml}}",
        "stages.pretrained.max_length=64",
        "stages.pretrained.batch_tokens=128",
        "stages.pretrained.steps=2",
        "stages.pretrained.evaluate_every=1",
        *(f"stages.{name}.evaluate_every=1" for name in ("tuned", "reward", "preferred", "widened", "policy")),
        *(f"stages.{name}.epochs=1" for name in ("tuned", "reward", "preferred", "widened")),
        "stages.policy.steps=2",
        "stages.scores.bootstrap=200",
        *(f"stages.{name}.max_tokens=8" for name in ("reward_pairs", "pairs", "scores")),
        "stages.policy.sampling.max_tokens=8",
    ]
    ended = togi(
        home, "run", str(FOLDER / "examples" / "chain.yaml"), *changes, "--threads", "1", "--compute", "float32"
    )
    assert ended.returncode == 0, ended.stderr
    run = collect(home / "runs" / "chain")
    stages = {stage.type: stage for stage in run.stages if stage.metrics}
    assert sorted(stages) == sorted(f"train.{kind}" for kind in TRAINED)
    for kind, stage in stages.items():
        curves = {key for line in stage.metrics for key in line}
        wanted = {"loss", "grad_norm", "learning_rate", "tokens_per_second", "memory/most_gb"}
        wanted |= {"validation/reward"} if kind == "train.grpo" else {"validation/loss"}
        assert wanted <= curves, (kind, sorted(curves))
    report = (home / "runs" / "chain" / "report.html").read_text()
    for title in (
        "Reward margin",
        "Accuracy on held-out pairs",
        "KL from the initial model",
        "Tokens per second",
        "Reward",
    ):
        assert title in report
