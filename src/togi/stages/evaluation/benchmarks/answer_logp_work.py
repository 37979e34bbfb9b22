"""Log-probabilities that a model gives to whole answers sampled elsewhere."""

from collections.abc import Sequence

import torch
from torch import nn

from togi.model.forest import Sequence as TokenSequence
from togi.model.forest import move, plant, split_by_tokens
from togi.model.policy import Policy
from togi.objectives.base import segment_sum

Ids = Sequence[int]


class AnswerLogp:
    """Computes log p(answer | prompt) with a model in this process, in nats, summed over the answer's tokens."""

    def __init__(self, net: nn.Module, *, tokens_at_once: int = 4096) -> None:
        self.policy = Policy(net)
        self.device = next(net.parameters()).device
        self.tokens_at_once = tokens_at_once

    def sums(self, groups: Sequence[tuple[Ids, Sequence[Ids]]], temperature: float = 1.0) -> list[list[float]]:
        """Returns one list per (prompt, answers) with one number per answer. Shared prefixes are computed once."""
        trees = [[_sequence(prompt, answer) for answer in answers] for prompt, answers in groups]
        found = [0.0] * sum(map(len, trees))
        for batch in split_by_tokens([tree for tree in trees if tree], self.tokens_at_once):
            forest = plant(batch.groups)
            with torch.inference_mode():
                logp_N = self.policy(move(forest, self.device), temperature=temperature).logp_N.double().cpu()
            sums = segment_sum(logp_N, forest.sequence_N, forest.num_sequences).tolist()
            for place, value in zip(batch.index_S, sums, strict=True):
                found[place] = value
        rest = iter(found)
        return [[next(rest) for _ in tree] for tree in trees]


def _sequence(prompt: Ids, answer: Ids) -> TokenSequence:
    return TokenSequence((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))
