"""Tiny networks and tokenizers of the kinds that can be written as GGUF."""

import json

import torch
from tiny import tiny_model
from tokenizers import Tokenizer, decoders, models
from tokenizers_made import byte_bpe
from transformers import PreTrainedTokenizerFast

from togi.model.gguf_splits import split_of
from togi.model.load import LoadedModel
from togi.text.template import get_template

CHAT = ("<|im_start|>", "<|im_end|>")
ROWS = 440  # more than the tokenizer has pieces
ROPE = {"rope_theta": 5e4}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32, **ROPE}  # fmt: skip
SIX = ["sliding_attention"] * 5 + ["full_attention"]
GEMMA = {
    "num_hidden_layers": 6,
    "layer_types": SIX,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": 256,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
NETWORKS = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", **ROPE}}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama 3": ("llama", {"rope_parameters": LLAMA_3}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, **ROPE}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 128, "use_sliding_window": False}),
    "gemma3": ("gemma3", GEMMA),
}


def made(kind: str = "llama", tokenizer=None, **changes) -> LoadedModel:
    net = tiny_model(
        kind,
        torch.float32,
        **{"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, **changes},
    )
    words = byte_bpe(special=CHAT) if tokenizer is None else tokenizer
    return LoadedModel(net=net, tokenizer=words, template=get_template("chatml-nobos"), name="tiny")


def named(name: str, **changes) -> LoadedModel:
    """The network of this name in NETWORKS, with a tokenizer of the kind that the real models have."""
    kind, settings = NETWORKS[name]
    cuts = {"qwen2": "qwen2", "qwen3": "qwen2", "llama 3": "llama-bpe"}.get(name)
    words = sentencepiece() if kind == "gemma3" else cut_by(split_of(cuts)) if cuts else None
    return made(kind, words, **settings, **changes)


def cut_by(splits) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the given pre-tokenizer."""
    tokenizer = byte_bpe.__wrapped__(special=CHAT)
    tokenizer.backend_tokenizer.pre_tokenizer = splits
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's and Gemma's kind: BPE with bytes for unknown characters."""
    alphabet = list("abcdehinortst▁.,")
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "n"), ("an", "d"), ("▁", "and"), ("e", "n")]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *CHAT]
    pieces = [*specials, *(f"<0x{i:02X}>" for i in range(256)), *dict.fromkeys(alphabet)]
    pieces += [a + b for a, b in merges]
    core = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    state = json.loads(core.to_str())
    state["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    core = Tokenizer.from_str(json.dumps(state))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
