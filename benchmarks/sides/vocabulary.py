"""The model of the memory benchmark: a small body with a large output head and random weights, equal on all sides."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def build(config: dict[str, Any]) -> LlamaForCausalLM:
    """Two layers of SmolLM2-135M's width under a tied head over `vocabulary` entries."""
    width = 64 if config["tiny"] else 576
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocabulary"],
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=2,
            num_attention_heads=width // 64,
            num_key_value_heads=max(1, width // 192),
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )


def fill_gradients(net: torch.nn.Module) -> int:
    """Allocates the gradients, so that the floor includes them; returns the bytes of weights and gradients."""
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return sum(2 * p.numel() * p.element_size() for p in net.parameters())
