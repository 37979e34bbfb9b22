"""Adds a recipe's special tokens to a model: to the tokenizer, and as rows of its embeddings and its head."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> tuple[str, ...]:
    """Makes `tokens` special tokens of the tokenizer; returns those that are new to it."""
    known = tokenizer.get_vocab()
    new = tuple(token for token in tokens if token not in known)
    if tokens:
        tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
        )
    return new


def give_rows(net: Any, tokenizer: Any, new: Sequence[str]) -> None:
    """Sets the rows of new tokens in the embeddings and the output head to the mean of the older tokens' rows, whether
    the rows are added or existed unused. Tied weights stay tied."""
    if not new:
        return
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(list(new))]
    older = [i for token, i in tokenizer.get_vocab().items() if token not in new]
    rows = int(net.get_input_embeddings().weight.shape[0])
    if max(ids) >= rows:
        net.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    tables = {
        id(module.weight): module.weight
        for module in (net.get_input_embeddings(), net.get_output_embeddings())
        if module
    }
    with torch.no_grad():
        for weight in tables.values():
            weight[ids] = weight[: max(older) + 1].mean(0, dtype=torch.float32).to(weight.dtype)
