"""Small real tokenizers, trained on a few lines: byte-level BPE, and Unigram with byte fallback and dummy prefix."""

import json
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "Hello there world, how are you? 日本語のテスト Hello there world, how are you? 日本語のテスト",
    "the cat\n\nsat on 12 mats.",
    "the end\n\n",
    "質問: 何ですか\n回答: はい",
    "<|im_start|>user\nHi<|im_end|>\n",
    "Привет, как дела?",
] * 20


@lru_cache(maxsize=32)
def byte_bpe(
    *, adds_bos: bool = False, trim: bool = True, merges_lines: bool = False, special: tuple[str, ...] = ()
) -> Any:
    """GPT-2's kind. `trim` leaves leading spaces out of offsets; `merges_lines` merges punctuation with line ends."""
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges_lines)
    made.pre_tokenizer = level
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", *special],
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    made.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@lru_cache(maxsize=32)
def unigram(*, scheme: str = "always", split: bool = True, special: tuple[str, ...] = ()) -> Any:
    """Llama's and llm-jp's kind. `scheme`: where the dummy prefix goes; without `split`, pieces may span words."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.UnigramTrainer(
        vocab_size=330,
        special_tokens=["<unk>", "<s>", "</s>", *special, *fallback],
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    state = json.loads(made.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(state))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tokenizers() -> dict[str, Any]:
    """One of each kind that treats token borders differently."""
    chat = ("<|im_start|>", "<|im_end|>")
    return {
        "bpe": byte_bpe(),
        "bpe-untrimmed": byte_bpe(trim=False),
        "bpe-bos": byte_bpe(adds_bos=True),
        "bpe-specials": byte_bpe(adds_bos=True, special=chat),
        "bpe-merging": byte_bpe(merges_lines=True),
        "unigram-always": unigram(),
        "unigram-first": unigram(scheme="first", split=False),
        "unigram-never": unigram(scheme="never", split=False),
        "unigram-specials": unigram(special=chat),
    }
