"""vLLM for tests: its interpreter (TOGI_VLLM_PYTHON), its settings, a model that it can serve, and runs that start it.

vLLM pins other versions of torch and transformers, so it lives in an environment of its own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import environment
from tokenizers_made import byte_bpe
from transformers import LlamaConfig, LlamaForCausalLM

PYTHON = os.environ.get("TOGI_VLLM_PYTHON")
needs_vllm = pytest.mark.skipif(not PYTHON, reason="TOGI_VLLM_PYTHON names no interpreter")
END = "<|im_end|>"
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
}
"""The environment of vLLM on a machine without an accelerator."""
ARGS = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--max-num-seqs", "16"]
"""The arguments of its server."""


def wide_llama(folder: Path, *, ends: str | None = None, template: str | None = None, **changes: Any) -> Path:
    """A random Llama whose heads are wide enough for vLLM, and a tokenizer with ChatML's tokens, of which `ends` is the
    end of a text; `template` is its chat template in Jinja."""
    tokenizer = byte_bpe(special=("<|im_start|>", END))
    tokenizer.eos_token = ends or tokenizer.eos_token
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_beside_vllm(recipe: Path, home: Path, log: Path) -> None:
    """Runs a recipe that starts vLLM, whose log is `log`; the run must succeed."""
    ended = subprocess.run(
        [sys.executable, "-m", "togi", "run", str(recipe)],
        env=environment(home, **SETTINGS),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + (log.read_text()[-3000:] if log.exists() else "")
