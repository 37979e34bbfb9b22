"""Compares the log-probabilities of two words at the first token of a model's answer, without sampling."""

from collections.abc import Sequence

import torch
from torch import nn

from togi.core.errors import RecipeError
from togi.core.protocols import Tokenizer
from togi.core.records import Message
from togi.model.forest import Sequence as TokenSequence
from togi.model.forest import move, plant
from togi.model.policy import Policy, hidden_states
from togi.text.render import render_answer, render_prompt
from togi.text.template import Template


class ModelChooser:
    """The `Chooser` of a model in this process, under its chat template."""

    def __init__(self, net: nn.Module, tokenizer: Tokenizer, template: Template) -> None:
        self.policy = Policy(net)
        self.net = net
        self.tokenizer = tokenizer
        self.template = template

    def margins(self, asked: Sequence[tuple[Message, ...]], yes: str, no: str) -> list[float]:
        """log p(yes) - log p(no) in nats for each conversation, by the first token of each word.

        The conversations form one tree, so their shared prefix is computed once. Raises RecipeError for a word without
        tokens, or words that begin with the same token.
        """
        first, second = (self._first_id(asked[0], word) for word in (yes, no))
        if first == second:
            raise RecipeError(
                f"{yes!r} and {no!r} begin with the same token of this model; choose other words for `yes` and `no`"
            )
        ids = [tuple(render_prompt(self.template, self.tokenizer, messages)) for messages in asked]
        sequences = [TokenSequence(each, (False,) * len(each)) for each in ids]
        forest = move(plant([sequences]), next(self.net.parameters()).device)
        with torch.inference_mode():
            hidden = hidden_states(self.net, forest, apart=self.policy.apart)
            logits = self.policy.head(hidden[forest.last_S])
        return (logits[:, first] - logits[:, second]).tolist()

    def _first_id(self, messages: tuple[Message, ...], word: str) -> int:
        """The first token of `word` as the model's answer."""
        ids = render_answer(self.template, self.tokenizer, messages, word)
        if not ids:
            raise RecipeError(f"{word!r} has no tokens in this model; choose another word")
        return ids[0]
