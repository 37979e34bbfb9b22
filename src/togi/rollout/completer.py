"""Continues plain texts with the embedded sampler, without a chat template."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from togi.core.records import Completion, SamplingParams
from togi.rollout.local import Sampler


class ModelCompleter:
    """The `Completer` of a model in this process. A text ends at the model's end-of-text token, at its template's
    terminator, or at a stop string. At most `batch_rows` samples are computed together."""

    def __init__(self, net: nn.Module, tokenizer: Any, terminator: str, *, batch_rows: int = 64) -> None:
        self.tokenizer = tokenizer
        ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.sampler = Sampler(net, tokenizer, terminator, batch_rows=batch_rows, end_ids=ends)

    def complete(
        self, texts: Sequence[str], params: SamplingParams, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """`params.n` continuations of each text, in order, with one random stream each in `seeds`. Raises InputError
        for a text that leaves no room."""
        ids = [self.tokenizer(text, add_special_tokens=True)["input_ids"] for text in texts]
        return self.sampler.generate(ids, params, seeds)
