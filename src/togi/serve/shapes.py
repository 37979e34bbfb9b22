"""Completions in the JSON formats of OpenAI's and vLLM's servers. Pure functions."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from togi.core.protocols import TextLogprobs
from togi.core.records import Completion

REASONS: Mapping[str, str] = {"terminator": "stop", "stop_string": "stop", "length": "length"}
Piece = Callable[[int], str]
"""The text of one token."""


def text_of(completion: Completion, terminator: str) -> str:
    """The answer without its terminator."""
    return completion.text.removesuffix(terminator) if completion.stop == "terminator" else completion.text


def stop_reason(completion: Completion, stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> str | None:
    """The stop string that ended the answer, or None if something else did."""
    if completion.stop != "stop_string":
        return None
    written = decode(completion.token_ids)
    ends = [(place + len(stop), stop) for stop in stops if (place := written.find(stop)) >= 0]
    return min(ends)[1] if ends else None


def usage(prompts: Sequence[int], groups: Sequence[Sequence[Completion]]) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of all answers."""
    read, written = sum(prompts), sum(len(one.token_ids) for group in groups for one in group)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def chat_logprobs(completion: Completion, piece: Piece) -> dict[str, Any]:
    """Log-probabilities in nats at the request's temperature (1 if greedy), one entry per sampled token."""
    tops = completion.top_logprobs or ((),) * len(completion.token_ids)
    entries = zip(completion.token_ids, completion.logprobs, tops, strict=True)
    content = [
        {**_token(token, logp, piece), "top_logprobs": [_token(other, its, piece) for other, its in top]}
        for token, logp, top in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(completion: Completion, piece: Piece, top: int) -> dict[str, Any]:
    """The same in the format of /v1/completions, with the `top` most likely tokens of each position. Of top tokens with
    the same text, only the most likely is reported."""
    texts = [piece(token) for token in completion.token_ids]
    tops = [{piece(token): logp for token, logp in reversed(top)} for top in completion.top_logprobs]
    return {
        "tokens": texts,
        "token_logprobs": list(completion.logprobs),
        "top_logprobs": tops if top else None,
        "text_offset": _offsets(texts),
    }


def echoed_logprobs(ids: Sequence[int], read: TextLogprobs, piece: Piece, top: int) -> dict[str, Any]:
    """Log-probabilities of a prompt in the same format; its first token has none."""
    texts = [piece(token) for token in ids]
    tops = [{piece(token): logp for token, logp in reversed(top)} for top in read.top]
    return {
        "tokens": texts,
        "token_logprobs": [None, *read.logprobs],
        "top_logprobs": [None, *tops] if top else None,
        "text_offset": _offsets(texts),
    }


def _offsets(texts: Sequence[str]) -> list[int]:
    """Where each text begins in their sum."""
    return list(accumulate(map(len, texts), initial=0))[:-1]


def joined_logprobs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The log-probabilities of a prompt, followed by those of its answer."""
    length = sum(map(len, first["tokens"]))
    tops = (first["top_logprobs"], second["top_logprobs"])
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": None if None in tops else [top for part in tops for top in part],
        "text_offset": first["text_offset"] + [length + at for at in second["text_offset"]],
    }


def _token(token: int, logp: float, piece: Piece) -> dict[str, Any]:
    text = piece(token)
    return {"token": text, "logprob": logp, "bytes": None if "\ufffd" in text else list(text.encode())}
