"""Saved folders in transformers 4.51: the keys, and (slow) the same text and score in a separate environment."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import TESTS
from tiny import tiny_tokenizer
from tiny_models import ended_by, said, speaker
from transformers import AutoTokenizer

from togi.core.records import Message
from togi.model.older import readable_config, readable_tokenizer
from togi.model.reward_model import ModelScorer, add_scalar_head
from togi.model.save import check_saved, save_model

PYTHON = os.environ.get("TOGI_TRANSFORMERS4_PYTHON")
needs_4 = pytest.mark.skipif(PYTHON is None, reason="TOGI_TRANSFORMERS4_PYTHON names no interpreter")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
QUESTION = "Say it."
DECODERS = {"model_input_names": ["input_ids", "attention_mask"]}


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (
            {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            {"torch_dtype": "bfloat16", "rope_theta": 7.0},
        ),
        (
            {"rope_parameters": LLAMA3},
            {"rope_theta": 500.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.5}},
            {"rope_theta": 7.0, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        (
            {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2},
            {"sliding_window_pattern": 3},
        ),
        ({"layer_types": ["sliding_attention"] * 2}, {"sliding_window_pattern": 3}),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, {}),
        ({"text_config": {"dtype": "float32"}}, {"text_config": {"dtype": "float32", "torch_dtype": "float32"}}),
    ],
)
def test_the_old_keys_stand_beside_the_new_ones(new, old):
    assert readable_config(new) == {**new, **old}


def test_a_tokenizers_class_and_its_special_tokens_are_known_to_both():
    made = readable_tokenizer({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]})
    assert made == {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"], **DECODERS}
    qwen = {"tokenizer_class": "Qwen2Tokenizer"}
    assert readable_tokenizer(qwen) == {**qwen, **DECODERS}


def test_a_saved_tokenizer_says_what_a_decoder_takes(tmp_path):
    """The class that version 4 reads returns token types by default, with which `generate` fails."""
    model = speaker("llama")
    save_model(model, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "tokenizer_config.json").read_text()).items() >= DECODERS.items()
    assert list(AutoTokenizer.from_pretrained(tmp_path / "m")(QUESTION)) == DECODERS["model_input_names"]


def read_by_4(folder: Path) -> dict:
    assert PYTHON is not None
    script = TESTS / "older_reader.py"
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [PYTHON, str(script), str(folder), QUESTION], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


CHANGES = {"llama": {"rope_parameters": LLAMA3}, "qwen2": {}, "qwen3": {}, "mistral": {}, "gemma2": {}, "gemma3": {}}


@needs_4
@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("kind", CHANGES)
def test_the_same_text(kind, length, tmp_path):
    model = speaker(kind, **CHANGES[kind])
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    model.net.resize_token_embeddings(len(model.tokenizer))
    model = ended_by(model, said(ended_by(model, "\x01\x02"))[-length:])
    save_model(model, tmp_path / "m")
    assert check_saved(model, tmp_path / "m") == []
    told = read_by_4(tmp_path / "m")
    assert told["text"] == said(model) and told["text"].endswith(model.template.terminator)
    assert told["ids"] == model.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    assert told["dtype"] == "torch.float32"


@needs_4
@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in CHANGES if kind != "gemma3"])  # 4.51 has no scorer for it
def test_the_same_score(kind, tmp_path):
    model = add_scalar_head(ended_by(speaker(kind, **CHANGES[kind]), "q"), seed=1)
    save_model(replace(model, tokenizer=tiny_tokenizer()), tmp_path / "m")
    (score,) = ModelScorer(model).score([((Message("user", QUESTION),), "yes")])
    assert isinstance(score, float)
    torch.testing.assert_close(read_by_4(tmp_path / "m")["score"], score, rtol=1e-5, atol=1e-5)
