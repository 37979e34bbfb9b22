"""Which stages depend on how a machine rounds, so that they continue only under the numerics that they began with."""

import ast
import json
from pathlib import Path

import pytest
from tiny_run import RECIPE, togi, write_recipe

import togi as package
from togi.core.settings import ModelRef, takes
from togi.stages.base import with_models
from togi.stages.table import STAGES

ROOT = Path(package.__file__).parent.parent
MODELS = ("model", "scorer", "embedder")
COMPUTING = {"togi.stages.arithmetic", "togi.stages.endpoints", "togi.model.load"}
"""Modules through which a stage computes with a model."""


def imported(module: str) -> set[str]:
    """The modules of togi that a module imports, or names in a text, to import them late."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())) if path.is_file() else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name for name in found if name.startswith("togi.")}


def reached(module: str) -> set[str]:
    seen, left = {module}, [module]
    while left:
        fresh = imported(left.pop()) - seen
        seen |= fresh
        left += fresh
    return seen


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_cannot_refer_to_a_model_does_not_compute_with_one(name):
    stage = STAGES[name]
    refers = any(takes(stage.settings, kind) for kind in MODELS)
    assert refers == bool(COMPUTING & reached(stage.work))


@pytest.mark.parametrize(
    ("settings", "computes"),
    [
        ({"type": "import", "kind": "chats", "path": "x.jsonl"}, False),
        ({"type": "select", "input": "$x", "count": 1}, False),
        ({"type": "split", "input": "$x", "parts": {"a": 0.5, "b": 0.5}}, False),
        ({"type": "pairs", "samples": "$x"}, False),
        ({"type": "mix", "inputs": [{"input": "$x"}], "by": "rows"}, False),
        ({"type": "dedup", "input": "$x"}, False),
        ({"type": "dedup", "input": "$x", "method": "embeddings"}, True),
        ({"type": "decontaminate", "input": "$x", "against": "$y"}, False),
        ({"type": "decontaminate", "input": "$x", "against": "$y", "embedder": "$e"}, True),
        ({"type": "curate", "input": "$x", "method": "rules"}, False),
        ({"type": "curate", "input": "$x", "method": "rules", "language_by": "detector"}, True),
        ({"type": "curate", "input": "$x", "model": "$m"}, True),
        ({"type": "diversify", "input": "$x", "keep": 2}, True),
        ({"type": "contrast", "input": "$x", "model": "$m"}, True),
        ({"type": "respond", "prompts": "$x", "models": ["$m"]}, True),
        ({"type": "score", "samples": "$x", "scorer": "$m"}, True),
        ({"type": "label", "samples": "$x", "judge": "$m"}, True),
        ({"type": "calibrate", "samples": "$x", "verdicts": "$y", "labels": "$z"}, True),
        ({"type": "train.sft", "init": "$m", "chats": "$x"}, True),
    ],
)
def test_only_what_depends_on_rounding_is_bound_to_numerics(settings, computes):
    stage = STAGES[settings["type"]]
    assert stage.computes(stage.settings.model_validate(settings)) == computes


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.job is not None])
def test_every_stage_that_trains_computes(name):
    init = STAGES[name].settings.model_fields["init"]
    assert init.is_required() and init.annotation is ModelRef and STAGES[name].computes is with_models


def test_an_unfinished_import_continues_under_another_arithmetic(tmp_path):
    text = RECIPE[: RECIPE.index("  pairs:")]
    recipe, home = write_recipe(tmp_path, text), tmp_path / "home"
    assert togi(home, "run", str(recipe), "--threads", "1").returncode == 0
    folders = [(home / "runs" / "tiny" / name).resolve() for name in ("questions", "some")]
    for folder in folders:
        assert not (folder / "numerics.json").exists()
        (folder / "numerics.json").write_text(json.dumps({"torch": "1.0"}))  # as an earlier release wrote it
        (folder / "DONE").unlink()
    ended = togi(home, "run", str(recipe), "--threads", "2", TOGI_COMPUTE="bfloat16")
    assert ended.returncode == 0, ended.stderr
