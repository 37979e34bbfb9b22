"""A policy sampled by vLLM: started by the run, given the weights of every batch, compared with the trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import QUESTIONS, REWARD, environment
from tokenizers_made import byte_bpe
from transformers import LlamaConfig, LlamaForCausalLM

from togi.core.files import read_lines
from togi.text.template import get_template

VLLM = os.environ.get("TOGI_VLLM_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM, reason="TOGI_VLLM_PYTHON names no interpreter")]
RECIPE = """\
name: served
seed: 3
models:
  base: {path: model}
  there: {path: model, serve: {engine: vllm, python: PYTHON, args: ARGS, ready_seconds: 500}}
data:
  questions: {path: questions.jsonl}
stages:
  policy:
    type: train.grpo
    init: $base
    prompts: $questions
    engine: {model: $there, publish: PUBLISH, tolerance: 0.01}
    steps: 4
    prompts_per_step: 2
    group_size: 4
    learning_rate: 3e-3
    save_every: 2
    sampling: {max_tokens: 12, temperature: 0.8}
    MORE
    reward:
      terms: [{type: function, file: reward.py, name: vowels}]
"""
ARGS = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--max-num-seqs", "16"]


def write(folder: Path, publish: str, args: list[str], more: str) -> Path:
    tokenizer = byte_bpe(special=("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = get_template("chatml-nobos").to_jinja()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    (folder / "reward.py").write_text(REWARD)
    filled = RECIPE.replace("PYTHON", str(VLLM)).replace("ARGS", json.dumps(args)).replace("PUBLISH", publish)
    path = folder / "served.yaml"
    path.write_text(filled.replace("MORE", more))
    return path


@pytest.mark.parametrize(
    ("publish", "args", "more"),
    [
        ("disk", [], ""),
        ("disk", [], "staleness: 1\n    loss: {sampler_correction: {level: token, mode: truncate, cap: 2.0}}"),
        ("adapter", ["--enable-lora", "--max-lora-rank", "8"], "lora: {rank: 4}"),
    ],
    ids=["disk", "one-batch-ahead", "adapter"],
)
def test_vllm_has_the_weights_of_every_batch(tmp_path: Path, publish: str, args: list[str], more: str) -> None:
    path = write(tmp_path, publish, [*ARGS, *args], more)
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "togi", "run", str(path)],
        env=environment(tmp_path / "home", **settings),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    run = tmp_path / "home" / "runs" / "served"
    log = run / "service-there.log"
    assert ended.returncode == 0, ended.stderr + (log.read_text()[-3000:] if log.exists() else "")
    rows: list[dict[str, Any]] = read_lines(run / "policy" / "metrics.jsonl")
    assert len(rows) == 4 and max(row["grad_norm"] for row in rows) > 0
    assert all(row["engine/probe"] < 1e-3 for row in rows)
    if "staleness" in more:
        assert rows[0]["sampler_mismatch"] < 1e-3 < rows[-1]["sampler_mismatch"]
    else:
        assert all(row["sampler_mismatch"] < 1e-3 for row in rows)
    print([(row["engine/probe"], row["sampler_mismatch"], row["sampler_kl"]) for row in rows])
