"""Reward models: a decoder with a scalar head that reads each sequence's last token.

Shapes: T rows, S sequences, H width. The last row comes from lengths. The library reads the last token that is not the
pad token, so `ModelScorer` cuts the texts of a loaded scorer after that one: causal attention sees no later token.

Folders have the library's layout (`...ForSequenceClassification` with `score.weight`), so each side can load what the
other saved.
"""

import sys
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from togi.core.errors import GraderError, InputError
from togi.core.records import Message
from togi.core.sources import ModelSource
from togi.model.forest import Forest, MicroBatch, Sequence, move, plant, split_by_tokens
from togi.model.inspect import Facts, context_of
from togi.model.load import LoadedModel, inspect, load_inspected
from togi.model.padding import read_length, tell_skipped
from togi.model.policy import body_of, hidden_states, nearly_equal, probe_ids, share_prompts, unwrapped
from togi.model.recompute import recomputed_layers
from togi.text.render import chat_text, render_text

Item = tuple[tuple[Message, ...], str]


def add_scalar_head(model: LoadedModel, *, seed: int) -> LoadedModel:
    """A scorer with the body of a causal model (shared, not copied) and a new head, random from `seed`.

    Raises InputError if the library has no such class for the architecture.
    """
    causal = unwrapped(model.net)
    config = type(causal.config).from_dict({**causal.config.to_dict(), "num_labels": 1})
    try:
        with torch.device("meta"):
            net: Any = AutoModelForSequenceClassification.from_config(config, dtype=causal.dtype)
    except ValueError as error:
        raise InputError(f"{model.name}: {config.model_type} models have no scalar head in transformers") from error
    setattr(net, net.base_model_prefix, getattr(causal, causal.base_model_prefix))
    width = config.get_text_config().hidden_size
    head = nn.Linear(width, 1, bias=False, dtype=causal.dtype)
    with torch.no_grad():
        weight = torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / (width + 1) ** 0.5
        head.weight.copy_(weight)
    net.score = head.to(causal.device)
    net.config._attn_implementation = causal.config._attn_implementation
    return replace(model, net=net.eval())


def keep_layers(model: LoadedModel, count: int) -> None:
    """Removes all but the first `count` transformer layers of a causal model, in place; its final norm stays.

    Raises InputError if it has fewer.
    """
    causal = unwrapped(model.net)
    body = getattr(causal, causal.base_model_prefix)
    if count > len(body.layers):
        raise InputError(f"{model.name}: {count} layers are to be kept, but it has {len(body.layers)}")
    body.layers = body.layers[:count]
    for config in (causal.config.get_text_config(), body.config.get_text_config()):
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:count]
        config.num_hidden_layers = count


def load_reward_model(
    source: ModelSource,
    cache: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    facts: Facts | None = None,
) -> LoadedModel:
    """Loads a scorer, also one trained elsewhere; see `load`. `facts` are those of `inspect`, if known.

    Its scores are the library's, also where a conversation ends with its pad token, which is logged. Raises InputError
    if it is a causal model, or if its head gives more than one number. Raises InputError too unless the library
    computes it as a scalar head on a decoder's last token that is not the pad token.
    """
    model = load_inspected(source, facts or inspect(source, cache), dtype=dtype, device=device, kind="scorer")
    check_scalar_head(model)
    tell_skipped(model)
    return model


@torch.no_grad()
def check_scalar_head(model: LoadedModel) -> None:
    """Compares togi's scores with the library's own on a probe. Raises InputError if they differ, as for encoders."""
    net = unwrapped(model.net)
    head = getattr(net, "score", None)
    other = f"{model.name}: togi reads scores from a decoder with one linear layer `score`, but {type(net).__name__} "
    if not isinstance(head, nn.Linear):
        raise InputError(f"{other}has none; use a reward model of a decoder (Llama, Qwen, Gemma, Mistral)")
    probes, pad = _probes(net), net.config.get_text_config().pad_token_id
    expected = torch.cat([net(input_ids=probe, use_cache=False).logits[0] for probe in probes])
    found = torch.cat([read_head(head, _state(net, probe, read_length(probe[0].tolist(), pad))) for probe in probes])
    if not nearly_equal(found.to(expected.dtype), expected):
        raise InputError(f"{other}gives scores {expected.tolist()} on a probe, but such a layer gives {found.tolist()}")


def _probes(net: Any) -> list[Tensor]:
    """Texts (1, T) of several lengths, and some that end with the pad token."""
    pad, rows = net.config.get_text_config().pad_token_id, len(net.get_input_embeddings().weight)
    ids = [i for i in probe_ids(net, 9) if i != pad][:8]
    padded = [] if pad is None or not 0 <= pad < rows else [[*ids[:4], pad], [pad, *ids[:2], pad, pad], [pad, pad]]
    return [torch.tensor([probe], device=net.device) for probe in (ids[:2], ids[:4], ids[:6], ids, *padded)]


def _state(net: Any, probe: Tensor, length: int) -> Tensor:
    """The last hidden state (1, H) of the token at which a probe is `length` tokens long."""
    return body_of(net)(input_ids=probe, use_cache=False).last_hidden_state[:, length - 1]


class RewardModel(nn.Module):
    """A network with a scalar head that scores forests: higher is better.

    With `check`, an architecture that the tests do not cover runs a probe tree; if that fails, sequences are computed
    one at a time (`apart`). `recompute` works as in `Policy`.
    """

    def __init__(self, net: nn.Module, *, check: bool = True) -> None:
        super().__init__()
        self.net = net
        self.recompute = False
        net.eval()
        self.apart = not share_prompts(net, check=check)

    def train(self, mode: bool = True) -> "RewardModel":
        """Does nothing: the model stays in evaluation mode, even in training."""
        return self

    def forward(self, forest: Forest) -> Tensor:
        """Scores (S,) of the forest's sequences, in fp32 or wider."""
        with recomputed_layers(unwrapped(self.net), self.recompute):
            hidden_SH = hidden_states(self.net, forest, apart=self.apart)[forest.last_S]
        scorer: Any = unwrapped(self.net)
        return read_head(scorer.score, hidden_SH)


def read_head(head: Any, hidden_SH: Tensor) -> Tensor:
    """Scores (S,) of hidden states by a scalar head, in fp32 or wider, even under autocast.

    In bfloat16, scores between 1 and 2 are 1/128 apart, so different answers would tie.
    """
    wide = torch.promote_types(hidden_SH.dtype, torch.float32)
    with torch.autocast(hidden_SH.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.to(wide)
        score_S1 = F.linear(hidden_SH.to(wide), head.weight.to(wide), bias)
    return score_S1[:, 0].clone()  # not a view, because sharding hooks the backward pass to the returned tensor


def batches_by_length(sequences: Seq[Sequence], prompts: Seq[Any], budget: int) -> Iterator[MicroBatch]:
    """Micro-batches that keep sequences of one prompt together, sorted by length; `index_S` gives original indices."""
    together: dict[Any, list[int]] = {}
    for i, prompt in enumerate(prompts):
        together.setdefault(prompt, []).append(i)
    groups = [sorted(places, key=lambda i: len(sequences[i].ids)) for places in together.values()]
    groups.sort(key=lambda places: len(sequences[places[-1]].ids))
    order = [i for places in groups for i in places]
    for batch in split_by_tokens([[sequences[i] for i in places] for places in groups], budget):
        yield MicroBatch(groups=batch.groups, index_S=tuple(order[i] for i in batch.index_S))


class ModelScorer:
    """A `Scorer` made of a reward model: it renders with its own template and tokenizer, shares prompts, never pads.

    `tokens` is the size of a micro-batch and affects only speed. A conversation longer than `max_tokens`, or the
    model's context, gets an error instead of a score: nothing is cut off, because a cut answer would be scored at the
    wrong token.
    """

    def __init__(self, model: LoadedModel, *, tokens: int = 8192, max_tokens: int | None = None) -> None:
        if model.kind != "scorer":
            raise InputError(f"{model.name} is a {model.kind} model; a scorer needs a scalar head")
        self.model = model
        self.tokens = tokens
        self.limit = max_tokens or context_of(model.net.config.get_text_config().to_dict()) or sys.maxsize
        self.reward = RewardModel(model.net)

    def sequence(self, messages: tuple[Message, ...], answer: str) -> Sequence:
        """The token ids of the conversation, up to the end of the answer as the template writes it."""
        turns = (*messages, Message("assistant", answer))
        try:
            ids = render_text(self.model.template, self.model.tokenizer, turns)
        except InputError as error:
            raise InputError(f"model {self.model.name}: {error}") from None
        return Sequence(tuple(ids), (False,) * len(ids))

    def text(self, messages: tuple[Message, ...], answer: str) -> str:
        """The text of a conversation that `sequence` tokenises."""
        return chat_text(self.model.template, self.model.tokenizer, (*messages, Message("assistant", answer)))

    def score(self, items: Seq[Item]) -> list[float | GraderError]:
        """Scores in the order of `items` (messages, answer without terminator)."""
        return self.score_and_count(items)[0]

    def score_and_count(self, items: Seq[Item]) -> tuple[list[float | GraderError], list[int]]:
        """Scores as `score` gives them, and the number of tokens of each item."""
        sequences = [self.sequence(messages, answer) for messages, answer in items]
        scores = self._score_fitting(sequences, [messages for messages, _ in items])
        return scores, [len(sequence.ids) for sequence in sequences]

    def score_ids(self, texts: Seq[Seq[int]]) -> list[float | GraderError]:
        """Scores of texts given as token ids, in order."""
        sequences = [Sequence(tuple(ids), (False,) * len(ids)) for ids in texts]
        return self._score_fitting(sequences, range(len(sequences)))

    def _score_fitting(self, sequences: Seq[Sequence], prompts: Seq[Any]) -> list[float | GraderError]:
        """Scores of the sequences that fit the model's limit, and errors for the others."""
        fitting = [i for i, sequence in enumerate(sequences) if len(sequence.ids) <= self.limit]
        scores = self.score_sequences([sequences[i] for i in fitting], [prompts[i] for i in fitting])
        found = dict(zip(fitting, scores, strict=True))
        return [found.get(i, self._too_long(sequence)) for i, sequence in enumerate(sequences)]

    def _too_long(self, sequence: Sequence) -> GraderError:
        length = len(sequence.ids)
        return GraderError(f"{self.model.name}: a conversation has {length} tokens; it reads at most {self.limit}")

    def _read(self, sequence: Sequence) -> Sequence:
        """The sequence up to the token at which it is read."""
        length = read_length(sequence.ids, self.model.skipped)
        return Sequence(sequence.ids[:length], sequence.scored[:length])

    @torch.inference_mode()
    def score_sequences(self, sequences: Seq[Sequence], prompts: Seq[Any]) -> list[float]:
        """Scores of token ids; sequences with equal `prompts` are computed in one tree."""
        scores = [0.0] * len(sequences)
        read = [self._read(sequence) for sequence in sequences]
        for batch in batches_by_length(read, prompts, self.tokens):
            found_S = self.reward(move(plant(batch.groups), unwrapped(self.model.net).device)).tolist()
            for place, score in zip(batch.index_S, found_S, strict=True):
                scores[place] = score
        return scores
