"""Random encoders of a few thousand weights: one with a head that scores pairs, one that embeds."""

from pathlib import Path
from typing import Any

import torch
from tiny import BYTES, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from togi.core.sources import ModelSource


def write_encoder(folder: Path, kind: Any = BertConfig, **changes: Any) -> ModelSource:
    """A random encoder with a head of one output, in the library's format."""
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    pair = TemplateProcessing(
        single="$A <eos>",
        pair="$A:0 <eos>:0 $B:1 <eos>:1",
        special_tokens=[("<eos>", tokenizer.eos_token_id)],
    )
    tokenizer.backend_tokenizer.post_processor = pair
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = kind(vocab_size=len(tokenizer), initializer_range=0.5, **{"num_labels": 1, **shape, **changes})
    config.max_position_embeddings, config.pad_token_id = 64, tokenizer.pad_token_id
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSource(kind="path", name=str(folder))


def write_embedder(folder: Path) -> ModelSource:
    """A random encoder without a head, in the format of sentence embedders."""
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=BYTES, max_position_embeddings=64, initializer_range=0.5, **sizes)
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelSource(kind="path", name=str(folder))
