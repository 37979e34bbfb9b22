"""Tiny models of all kinds that the sampler is tested on, and tokenizers that spell a character with several tokens."""

import copy

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}
WINDOW = {"sliding_window": 6}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES, **WINDOW, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, **WINDOW, **LAYERS, head_dim=8, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**SIZES, **WINDOW, **LAYERS, head_dim=8, query_pre_attn_scalar=8),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    # heads wide enough for the compiled attention
    "llama, wide heads": LlamaConfig(**SIZES, head_dim=32),
    "qwen2, wide heads": Qwen2Config(**SIZES, head_dim=32),
    "qwen3, wide heads": Qwen3Config(**SIZES, head_dim=32),
    "mistral, wide heads": MistralConfig(**SIZES, **WINDOW, head_dim=32),
    "gemma2, wide heads": Gemma2Config(**SIZES, **WINDOW, **LAYERS, head_dim=32, attn_logit_softcapping=2.0),
    "gemma3, wide heads": Gemma3TextConfig(**SIZES, **WINDOW, **LAYERS, head_dim=32, query_pre_attn_scalar=8),
}


class CharTokenizer:
    """One character per id."""

    def __call__(self, text, *, add_special_tokens, return_offsets_mapping=False):
        return {"input_ids": [ord(c) - 0x4E00 for c in text]}

    def decode(self, ids, **kwargs):
        return "".join(chr(0x4E00 + i) for i in ids)


def tiny(config: PretrainedConfig):
    """A random model; its norms have random weights too, since those of a new model are trivial."""
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn_like(weight)
    return net


CORPUS = [
    "Hello there, how are you?\n",
    "今日は天気が良いですね。",
    "日本語の文章です。\n",
    "answer: yes | no |> ok <|x",
] * 4


def byte_level() -> PreTrainedTokenizerFast:
    """Few merges, so that most Japanese characters are spelt with several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Word boundaries as U+2581, bytes for unknown characters, and a dummy space that decoding removes."""
    pieces = ["<unk>", "<|im_end|>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [*"abcdefghijklmnopqrstuvwxyz<|>_.\n日本語。", "\u2581", "\u2581the", "|>", "end", "\u2581|", "|>\n"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
