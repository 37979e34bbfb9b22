"""The answers of servers, as values, and their stored form.

A `Failure` is not an answer: it is never stored, and the next run asks again.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from togi.client.endpoint import NO_TOKENS, Tokens

Finish = Literal["stop", "stop_string", "length"]
Reason = Literal["refused", "too_long", "filtered", "deadline", "server", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One generated text. `text` includes neither the stop string that ended it nor the terminator.

    `logprobs` are in nats, one per token of `tokens`; `top` holds, per token, the most likely tokens with their
    log-probabilities, best first. `token_ids` is empty if the server returns no ids.
    """

    text: str
    finish: Finish
    token_ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[str, float], ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The choices of one request, as many as it asked for, in order."""

    choices: tuple[Choice, ...]
    usage: Tokens = NO_TOKENS

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One raw score per item, or the reason why the server could not score the item."""

    scores: tuple[float | str, ...]
    usage: Tokens = NO_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Embeddings: (texts, width) float32, one row per text, as the server returns them: not normalised."""

    rows: np.ndarray
    usage: Tokens = NO_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that got no complete answer within its tries and its deadline, with the reason."""

    reason: Reason
    message: str


Whole = Answer | Scores | Vectors
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump(answer: Whole) -> bytes:
    """Serialises an answer for the store. Its texts must be valid Unicode, as `wire_base.text` ensures."""
    value: dict[str, Any] = {"usage": [answer.usage.input, answer.usage.output]}
    if isinstance(answer, Answer):
        value["choices"] = [_choice_json(choice) for choice in answer.choices]
    elif isinstance(answer, Scores):
        value["scores"] = answer.scores
    else:
        value["width"] = answer.rows.shape[1]
        value["rows"] = base64.b64encode(np.ascontiguousarray(answer.rows, "<f4").tobytes()).decode()
    return _compact(value).encode()


def load(body: bytes) -> Whole:
    """Reads an answer that `dump` wrote."""
    value = json.loads(body)
    usage = Tokens(*value["usage"])
    if "choices" in value:
        return Answer(choices=tuple(map(_choice, value["choices"])), usage=usage)
    if "scores" in value:
        return Scores(scores=tuple(value["scores"]), usage=usage)
    rows = np.frombuffer(base64.b64decode(value["rows"]), "<f4").reshape(-1, value["width"])
    return Vectors(rows=rows, usage=usage)


def _choice_json(choice: Choice) -> dict[str, Any]:
    """A choice as JSON, without its empty fields."""
    said = {name: getattr(choice, name) for name in ("token_ids", "tokens", "logprobs", "top")}
    return {"text": choice.text, "finish": choice.finish, **{name: value for name, value in said.items() if value}}


def _choice(value: dict[str, Any]) -> Choice:
    top = tuple(tuple((token, logprob) for token, logprob in place) for place in value.get("top", ()))
    return Choice(
        text=value["text"],
        finish=value["finish"],
        token_ids=tuple(value.get("token_ids", ())),
        tokens=tuple(value.get("tokens", ())),
        logprobs=tuple(value.get("logprobs", ())),
        top=top,
    )
