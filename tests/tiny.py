"""Tiny random models with the parts that the tests of `model` need; float64 unless another dtype is requested."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large, so that a wrong row or key is noticed
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "gemma3": (Gemma3TextConfig, {**WINDOW, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}),
    "gemma2": (Gemma2Config, {**WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}),
    "mistral": (MistralConfig, {"sliding_window": 5}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}),
}


class TrueFloat64(TorchFunctionMode):
    """Keeps float64 where the library rounds to fp32 in between (norms, softmax, routers), so that any remaining
    difference is a difference of method."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        wide = args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if wide and (func is torch.Tensor.float or (func is torch.Tensor.to and torch.float32 in args)):
            return args[0]
        if wide and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def as_near(found: torch.Tensor, library: torch.Tensor, exact: torch.Tensor, factor: float = 2.0) -> bool:
    """Whether `found` is about as near to the float64 truth as the library is. Two ways to sum the same numbers
    round differently, and neither is the reference for the other. Below 8 units in the last place of float32, chance
    decides."""
    ours, theirs = ((x.double() - exact).norm().item() for x in (found, library))
    return ours <= factor * theirs + 1e-6 * exact.norm().item()


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that was created."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and not func.is_view:
                self.numel = max(self.numel, one.numel())
        return out


def tiny_model(
    kind: str, dtype: torch.dtype = torch.float64, seed: int = 0, attention: str = "eager", **changes: Any
) -> PreTrainedModel:
    """A random model with the library's plainest attention, the only one that supports soft caps. `changes` override
    its configuration."""
    torch.manual_seed(seed)
    options = {"experts_implementation": "eager"} if kind in ("mixtral", "qwen3_moe") and dtype == torch.float64 else {}
    config_class, extra = CONFIGS[kind]
    config = config_class(**{**SHAPE, **extra, **changes})
    net = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype, **options)
    return net.eval()


BYTES = 264  # size of the vocabulary of the tokenizer below


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after pad, bos and eos."""
    specials = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = {piece: i for i, piece in enumerate([*specials, *alphabet])}
    core = Tokenizer(models.BPE(vocab=table, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
