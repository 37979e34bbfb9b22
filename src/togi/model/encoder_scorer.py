"""Reward models that are encoders, such as DeBERTa: they read a prompt and an answer as a pair of texts.

The prompt is the text of its turns, joined by newlines, because an encoder has no chat template. The library's
tokenizer encodes the pair; batches are padded and masked, so a score does not depend on the batch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from togi.core.errors import GraderError, InputError
from togi.core.records import Message
from togi.core.sources import ModelSource
from togi.model.beginning import READ, first_ids
from togi.model.inspect import Facts, context_of
from togi.model.load import inspect, load_tokenizer_of
from togi.model.network import build, is_encoder, read_config
from togi.model.reward_model import ModelScorer, load_reward_model

Item = tuple[tuple[Message, ...], str]


class EncoderScorer:
    """A `Scorer` made of an encoder with a head of one number. `tokens` is the size of a batch, padding included.

    A pair longer than the encoder's positions gets an error instead of a score; nothing is cut off.
    """

    def __init__(self, net: Any, tokenizer: Any, name: str, *, tokens: int = 8192) -> None:
        self.net = net
        self.tokenizer = tokenizer
        self.name = name
        self.tokens = tokens
        self.limit = min(_positions(net), tokenizer.model_max_length)

    def text(self, messages: Sequence[Message], answer: str) -> str:
        """The texts of a pair, joined."""
        ((asked, said),) = _pairs([(tuple(messages), answer)])
        return asked + said

    def score(self, items: Sequence[Item]) -> list[float | GraderError]:
        """Scores in the order of `items` (messages, answer)."""
        return self.score_and_count(items)[0]

    def score_and_count(self, items: Sequence[Item]) -> tuple[list[float | GraderError], list[int]]:
        """Scores as `score` gives them, and the tokens of each pair as `lengths` gives them."""
        pairs, lengths = _pairs(items), self.lengths(items)
        found: list[float | GraderError] = [self._too_long() for _ in items]
        for places in self._batches(lengths):
            for place, score in zip(places, self._read([pairs[i] for i in places]), strict=True):
                found[place] = score
        return found, lengths

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """The tokens of each pair, special ones included. A pair with a long text that alone exceeds the limit is not
        read to its end, and counts one token more than the limit."""
        return [self._length(pair) for pair in _pairs(items)]

    def _length(self, pair: tuple[str, str]) -> int:
        for text in pair:
            if len(text) > READ * self.limit and len(first_ids(self.tokenizer, text, self.limit + 1)) > self.limit:
                return self.limit + 1
        return len(self.tokenizer(*pair)["input_ids"])

    def score_ids(self, texts: Sequence[Sequence[int]]) -> list[float | GraderError]:
        """Raises InputError, because a single text does not show where the prompt ends."""
        raise InputError(
            f"{self.name} reads a prompt and an answer as a pair, not a single text; send conversations (`messages`) "
            "to /v1/scores"
        )

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Batches of the indices of pairs that fit, the shortest first."""
        batches: list[list[int]] = []
        for place in sorted((i for i, n in enumerate(lengths) if n <= self.limit), key=lambda i: lengths[i]):
            if not batches or (len(batches[-1]) + 1) * lengths[place] > self.tokens:
                batches.append([])
            batches[-1].append(place)
        return batches

    @torch.inference_mode()
    def _read(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        asked, answers = ([pair[side] for pair in pairs] for side in (0, 1))
        batch = self.tokenizer(asked, answers, padding=True, return_tensors="pt").to(self.net.device)
        return self.net(**batch).logits[:, 0].float().tolist()

    def _too_long(self) -> GraderError:
        return GraderError(f"{self.name}: prompt and answer are too long; it reads at most {self.limit} tokens")


def _pairs(items: Sequence[Item]) -> list[tuple[str, str]]:
    """The text of each prompt's turns, and the answer."""
    return [("\n".join(message.content for message in messages), answer) for messages, answer in items]


def _positions(net: Any) -> int:
    """The longest pair, in tokens. Models such as RoBERTa number positions from the pad token's id + 1."""
    known = context_of(net.config.get_text_config().to_dict())
    pad = getattr(getattr(net.base_model, "embeddings", None), "padding_idx", None)
    return sys.maxsize if known is None else known if pad is None else known - pad - 1


def reads_pairs(facts: Facts) -> bool:
    """Whether a model is an encoder, which reads prompt and answer as a pair."""
    return is_encoder(read_config(facts.folder))


def load_scorer_of(
    source: ModelSource,
    cache: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    facts: Facts | None = None,
) -> ModelScorer | EncoderScorer:
    """A decoder or encoder reward model, depending on its configuration; `facts` are those of `inspect`, if known.

    Raises InputError if its head gives several numbers, and as `load_reward_model` does.
    """
    facts = facts or inspect(source, cache)
    if not reads_pairs(facts):
        return ModelScorer(load_reward_model(source, cache, dtype=dtype, device=device, facts=facts))
    net = build(facts, torch.float32, "scorer", encoder=True).to(device).eval()
    return EncoderScorer(net, load_tokenizer_of(facts), source.name)


def check_encoder(source: ModelSource, cache: Path) -> bool:
    """Whether a scorer is an encoder; if so, checks its files without loading weights. Raises InputError as loading
    does."""
    facts = inspect(source, cache, weights=False)
    if not reads_pairs(facts):
        return False
    build(facts, torch.float32, "scorer", meta=True, encoder=True)
    load_tokenizer_of(facts)
    return True
