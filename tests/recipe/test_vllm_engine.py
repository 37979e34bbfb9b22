"""A policy sampled by vLLM: started by the run, given the weights of every batch, compared with the trainer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_recipes import engine_recipe
from tiny_run import QUESTIONS, REWARD
from vllm_here import ARGS, PYTHON, needs_vllm, run_beside_vllm, wide_llama

from togi.core.files import read_lines
from togi.text.template import get_template

pytestmark = [pytest.mark.slow, needs_vllm]
MODELS = (
    "base: {path: model}",
    "there: {path: model, serve: {engine: vllm, python: PYTHON, args: ARGS, ready_seconds: 500}}",
)
SETTINGS = (
    "engine: {model: $there, publish: PUBLISH, tolerance: 0.01}",
    "steps: 4",
    "learning_rate: 3e-3",
    "save_every: 2",
    "sampling: {max_tokens: 12, temperature: 0.8}",
    "reward: {terms: [{type: function, file: reward.py, name: vowels}]}",
)


def write(folder: Path, publish: str, args: list[str], more: Sequence[str]) -> Path:
    wide_llama(folder / "model", template=get_template("chatml-nobos").to_jinja(), initializer_range=0.3)
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    (folder / "reward.py").write_text(REWARD)
    text = engine_recipe("served", MODELS, *SETTINGS, *more)
    path = folder / "served.yaml"
    path.write_text(text.replace("PYTHON", str(PYTHON)).replace("ARGS", json.dumps(args)).replace("PUBLISH", publish))
    return path


@pytest.mark.parametrize(
    ("publish", "args", "more"),
    [
        ("disk", [], ()),
        ("disk", [], ("staleness: 1", "loss: {sampler_correction: {level: token, mode: truncate, cap: 2.0}}")),
        ("adapter", ["--enable-lora", "--max-lora-rank", "8"], ("lora: {rank: 4}",)),
    ],
    ids=["disk", "one-batch-ahead", "adapter"],
)
def test_vllm_has_the_weights_of_every_batch(
    tmp_path: Path, publish: str, args: list[str], more: Sequence[str]
) -> None:
    path = write(tmp_path, publish, [*ARGS, *args], more)
    run = tmp_path / "home" / "runs" / "served"
    run_beside_vllm(path, tmp_path / "home", run / "service-there.log")
    rows: list[dict[str, Any]] = read_lines(run / "policy" / "metrics.jsonl")
    assert len(rows) == 4 and max(row["grad_norm"] for row in rows) > 0
    assert all(row["engine/probe"] < 1e-3 for row in rows)
    if "staleness: 1" in more:
        assert rows[0]["sampler_mismatch"] < 1e-3 < rows[-1]["sampler_mismatch"]
    else:
        assert all(row["sampler_mismatch"] < 1e-3 for row in rows)
    print([(row["engine/probe"], row["sampler_mismatch"], row["sampler_kl"]) for row in rows])
