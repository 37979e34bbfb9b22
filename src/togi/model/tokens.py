"""Special tokens that a recipe adds to a model: in the tokenizer, and as rows of its embeddings and of its head."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> tuple[str, ...]:
    """Makes `tokens` special tokens of the tokenizer; gives those that it did not have."""
    known = tokenizer.get_vocab()
    new = tuple(token for token in tokens if token not in known)
    if tokens:
        tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
        )
    return new


def give_rows(net: Any, tokenizer: Any, new: Sequence[str]) -> None:
    """Gives new tokens rows of the embeddings and of the output head: the mean of the rows of the older tokens, whether
    they are added or stood there unused. Tied ones stay tied."""
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
