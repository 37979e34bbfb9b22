"""A small model for the tests of servers."""

from types import SimpleNamespace

import pytest
from rollout_tiny import CONFIGS, byte_level, tiny
from transformers import LlamaConfig

from togi.core.records import SamplingParams
from togi.rollout.local import Sampler
from togi.text.template import get_template

TEXT = "Hello there, how"
CONTEXT = 512


@pytest.fixture(scope="session")
def model() -> SimpleNamespace:
    """Weights, tokenizer, template, and the token that ends the greedy continuation of TEXT."""
    tokenizer = byte_level()
    net = tiny(LlamaConfig(**{**CONFIGS["llama"].to_diff_dict(), "max_position_embeddings": CONTEXT}))
    template = get_template("llama3-text", tokenizer)
    ids = tokenizer(TEXT)["input_ids"]
    plain = Sampler(net, tokenizer, template.terminator).generate([ids], SamplingParams(max_tokens=9), [[0]])[0][0]
    return SimpleNamespace(
        net=net, tokenizer=tokenizer, template=template, end=plain.token_ids[-1], text=TEXT, context=CONTEXT
    )
