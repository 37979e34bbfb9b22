"""Sentence embeddings: mean of the last hidden states over the real tokens, scaled to length 1.

Shapes: B texts of a batch, L tokens, H width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from togi.core.errors import InputError
from togi.core.outside import read_object
from togi.core.sources import ModelSource
from togi.model.beginning import first_ids
from togi.model.headers import read_weights
from togi.model.inspect import context_of, located
from togi.model.load import inspect
from togi.model.network import foreign, is_encoder, read_config
from togi.model.packages import package_folder


def mean_pooled(hidden_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the unmasked tokens, scaled to length 1, (B, H)."""
    weight_BL1 = mask_BL[..., None].to(hidden_BLH.dtype)
    mean_BH = (hidden_BLH * weight_BL1).sum(1) / weight_BL1.sum(1).clamp_min(1)
    return torch.nn.functional.normalize(mean_BH, dim=-1)


def _check_pooling(place: Path) -> None:
    """Raises InputError if the folder asks for a pooling other than the mean."""
    config = place / "1_Pooling" / "config.json"
    if config.exists() and not read_object(config).get("pooling_mode_mean_tokens"):
        raise InputError(f"{place}: asks for a pooling other than the mean over tokens; only the mean is supported")


def _max_tokens(place: Path, model: Any) -> int:
    """The most tokens that the embedder reads of a text, special tokens included."""
    stated = place / "sentence_bert_config.json"
    said = read_object(stated).get("max_seq_length") if stated.exists() else None
    limits = [limit for limit in (said, _positions(model)) if type(limit) is int]
    if not limits:
        raise InputError(f"{place}: the embedder does not specify its longest input (max_position_embeddings)")
    return min(limits)


def _positions(model: Any) -> int | None:
    """The number of tokens for which an encoder has positions. RoBERTa and similar models (such as XLM-R, the base of
    multilingual E5) number positions from the pad token's id + 1, so the rows before that are unused."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    limit, before = context_of(model.config.to_dict()), getattr(table, "padding_idx", None)
    return limit if limit is None or before is None else limit - before - 1


def embeds(source: ModelSource, cache: Path) -> bool:
    """Whether a model is an encoder without a scoring head, which can only embed. Raises InputError if it cannot be
    found."""
    config = read_config(inspect(source, cache).folder)
    scores = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return is_encoder(config) and not scores


class SentenceEmbedder:
    """An `Embedder` made of an encoder of transformers.

    `prefix` is put before every text ("query: " for E5). `tokens` is the size of a batch, padding included; it affects
    only speed. A text that is too long is cut at its end, as in the training of the encoder.
    Raises InputError if the model cannot be found, or uses another pooling.
    """

    def __init__(
        self,
        source: ModelSource,
        cache: Path,
        *,
        prefix: str = "",
        tokens: int = 4096,
        device: torch.device | str = "cpu",
    ) -> None:
        place = package_folder(source, cache) if source.kind == "package" else located(source, weights=True)
        _check_pooling(place)
        read_weights(place)
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
        where = f"{source.name}: the embedder cannot be loaded"
        self.model: Any = foreign(lambda: AutoModel.from_pretrained(place, **options), where)
        self.tokenizer: Any = foreign(lambda: AutoTokenizer.from_pretrained(place, local_files_only=True), where)
        self.model.eval().to(device)
        self.prefix = prefix
        self.tokens = tokens
        self.max_tokens = _max_tokens(place, self.model)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of texts grouped by length, to reduce padding."""
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            if batch and lengths[place] * (len(batch) + 1) > self.tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [first_ids(self.tokenizer, self.prefix + text, self.max_tokens) for text in texts]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (len(texts), H) in float32, each of length 1; zeros for a text without tokens."""
        return self.embed_counted(texts)[0]

    @torch.inference_mode()
    def embed_counted(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Like `embed`, and also the number of tokens read, special ones included."""
        ids = self._ids(texts)
        rows = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for batch in self._batches([len(one) for one in ids]):
            if not ids[batch[-1]]:  # the longest of its batch
                continue
            padded = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(
                self.model.device
            )
            hidden_BLH = self.model(**padded).last_hidden_state
            rows[batch] = mean_pooled(hidden_BLH, padded["attention_mask"]).cpu().numpy()
        return rows, sum(map(len, ids))
