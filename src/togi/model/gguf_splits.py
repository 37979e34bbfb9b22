"""The pre-tokenization (splitting before merges) of byte-level tokenizers, by its name in GGUF files.

The names and splits are llama.cpp's. The model library knows some of the names, and silently splits as GPT-2 for all
others: SmolLM2 would read "\\n\\n2." in four pieces instead of the three that it learnt.
"""

from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from togi.core.errors import InputError
from togi.core.files import read_json, write_json

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
SPLITS = {
    "llama-bpe": rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_SHORT}|{_LETTERS}|\p{{N}}|{_REST}",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""The regular expressions of tokenizers that split by one, by name: Llama 3, Qwen 2 and 3, Mistral Nemo."""
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Names of tokenizers that separate each digit, then split as GPT-2."""
GPT_2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "gigachat")
"""Names of tokenizers that split as GPT-2."""


def digits() -> Any:
    """The pre-tokenizer of `DIGITS`."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])


def drop_strangers(folder: Path, gguf: Path) -> None:
    """Removes from a saved tokenizer what the model library added: special tokens of GPT-2 or Gemma that are not in the
    GGUF, and whose ids have no embeddings."""
    count = len(GGUFReader(gguf).fields["tokenizer.ggml.tokens"].data)
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    state = read_json(path)
    strange = [token["content"] for token in state["added_tokens"] if token["id"] >= count]
    if not strange:
        return
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < count]
    vocab = state["model"]["vocab"]
    if isinstance(vocab, dict):
        state["model"]["vocab"] = {piece: place for piece, place in vocab.items() if place < count}
    write_json(path, state)
    write_json(settings, {key: value for key, value in read_json(settings).items() if value not in strange})


def scaled_positions(gguf: Path) -> bool:
    """Whether the rotary positions of a GGUF are scaled, which the model library does not support."""
    reader = GGUFReader(gguf)
    kinds = [_text(reader.fields, name) for name in reader.fields if name.endswith(".rope.scaling.type")]
    return any(kind != "none" for kind in kinds) or any(each.name == "rope_freqs.weight" for each in reader.tensors)


def mend_splits(tokenizer: Tokenizer, gguf: Path) -> None:
    """Makes a tokenizer that the model library read from a GGUF split texts as the file specifies.

    Raises InputError for a name that neither togi nor the library knows.
    """
    fields = GGUFReader(gguf).fields
    model, name = (_text(fields, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or name in ("", *GGUF_PRE_TOKENIZER_SPLITS):
        return  # SentencePiece does not split, and the library knows these names
    if name in GPT_2:
        cuts: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif name in DIGITS:
        cuts = digits()
    else:
        raise InputError(
            f"{gguf.name}: its tokenizer splits texts by {name!r}, which togi does not know; use the model's "
            "safetensors, with its tokenizer.json"
        )
    tokenizer.pre_tokenizer = cuts  # pyright: ignore[reportAttributeAccessIssue]


def _text(fields: Any, key: str) -> str:
    return str(fields[key].contents()) if key in fields else ""


def split_name(tokenizer: dict[str, Any]) -> str | None:
    """The GGUF name for the splits of a byte-level tokenizer, given the value of its tokenizer.json, or None if it is
    unknown."""
    found = tokenizer.get("pre_tokenizer") or {}
    parts = found.get("pretokenizers", [found])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return "gpt-2" if parts[0].get("use_regex", True) else None
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm" if parts[0].get("individual_digits") and parts[1].get("use_regex", True) else None
    if kinds == ["Split", "ByteLevel"]:
        said = parts[0].get("pattern", {}).get("Regex")
        return next((name for name, split in SPLITS.items() if split == said), None)
    return None


def split_of(name: str) -> Any:
    """The pre-tokenizer for a name in `SPLITS`."""
    cut = pre_tokenizers.Split(Regex(SPLITS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
