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
from togi.model.headers import read_weights
from togi.model.inspect import context_of, located
from togi.model.load import inspect
from togi.model.network import foreign, is_encoder, read_config
from togi.model.packages import package_folder


def mean_pooled(hidden_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the tokens that the mask keeps, scaled to length 1, (B, H)."""
    weight_BL1 = mask_BL[..., None].to(hidden_BLH.dtype)
    mean_BH = (hidden_BLH * weight_BL1).sum(1) / weight_BL1.sum(1).clamp_min(1)
    return torch.nn.functional.normalize(mean_BH, dim=-1)


def _check_pooling(place: Path) -> None:
    """Raises InputError where the folder asks for another pooling than the mean."""
    config = place / "1_Pooling" / "config.json"
    if config.exists() and not read_object(config).get("pooling_mode_mean_tokens"):
        raise InputError(
            f"{place}: asks for a pooling other than the mean of its tokens, which is all that is known here"
        )


def _max_tokens(place: Path, model: Any) -> int:
    """The length at which the embedder cuts a text, special tokens included."""
    stated = place / "sentence_bert_config.json"
    said = read_object(stated).get("max_seq_length") if stated.exists() else None
    limits = [limit for limit in (said, _positions(model)) if type(limit) is int]
    if not limits:
        raise InputError(f"{place}: the embedder does not say how long a text it takes (max_position_embeddings)")
    return min(limits)


def _positions(model: Any) -> int | None:
    """How many tokens an encoder has positions for. RoBERTa and its like (XLM-R, on which multilingual E5 stands) count
    them from the pad token's id + 1 on, so that as many rows of the table are no token's."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    limit, before = context_of(model.config.to_dict()), getattr(table, "padding_idx", None)
    return limit if limit is None or before is None else limit - before - 1


def embeds(source: ModelSource, cache: Path) -> bool:
    """Whether a model is an encoder without a head that scores, which can only embed. Raises InputError for one that
    cannot be found."""
    config = read_config(inspect(source, cache).folder)
    scores = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return is_encoder(config) and not scores


class SentenceEmbedder:
    """An `Embedder` made of an encoder of transformers.

    `prefix` is put before every text ("query: " for E5). `tokens` is the size of a batch, padding included; it changes
    speed alone. A text longer than the encoder reads is cut at its end, as the encoder was trained.
    Raises InputError for a model that cannot be found or pools in another way.
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
        """Places of texts of like length, so that little is padded."""
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            if batch and lengths[place] * (len(batch) + 1) > self.tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        cut = {"truncation": True, "max_length": self.max_tokens}
        return [self.tokenizer(self.prefix + text, **cut)["input_ids"] for text in texts]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (len(texts), H) in float32, each of length 1; of a text without tokens, zeros."""
        return self.embed_counted(texts)[0]

    @torch.inference_mode()
    def embed_counted(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """The same, and how many tokens were read, special ones included."""
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
