"""Scores and embeddings. A score is the raw output of a reward model's head, never a probability.

togi's own endpoint: POST /v1/scores {model, items: [{text} | {ids} | {messages}]} -> {scores: [number or null],
errors: [null or text], usage}. It scores each request as one batch.
"""

from typing import Any

import numpy as np

from togi.client.answers import Scores, Vectors
from togi.client.requests import EmbedRequest, ScoreRequest, TextPair, item_json
from togi.client.wire_base import Broken, Call, check_error, fields, in_order, items, listed, number, text
from togi.core.errors import InputError
from togi.core.records import Message


def scores(request: ScoreRequest, model: str, speaks: str, path: str) -> Call:
    """The call that scores all items as one batch."""
    if isinstance(request.items[0], TextPair):
        return _pairs(request, model)
    if speaks == "togi":
        return Call("/scores", {"model": model, "items": [_own(item) for item in request.items]})
    if any(isinstance(item, tuple) and item and isinstance(item[0], Message) for item in request.items):
        raise InputError(
            f"the protocol {speaks} scores texts or token ids, not conversations; set the model's `tokenizer` and "
            "`template`, or serve it with togi"
        )
    if speaks == "sglang":
        key = "text" if isinstance(request.items[0], str) else "input_ids"
        return Call("/classify", {"model": model, key: list(request.items)}, at_root=True)
    body = {"model": model, "input": list(request.items), "use_activation": False}
    return Call(path, body, at_root=True)


def _pairs(request: ScoreRequest, model: str) -> Call:
    pairs = [item for item in request.items if isinstance(item, TextPair)]
    if len(pairs) != len(request.items):
        raise InputError("a request scores either pairs of texts or single texts, not both")
    body = {"text_1": [pair.query for pair in pairs], "text_2": [pair.document for pair in pairs]}
    return Call("/score", {"model": model, **body, "use_activation": False}, at_root=True)


def _own(item: Any) -> dict[str, Any]:
    said = item_json(item)
    return said if isinstance(said, dict) else {"text" if isinstance(said, str) else "ids": said}


def read_scores(request: ScoreRequest, value: Any, speaks: str, path: str) -> Scores:
    """One score per item, in order. Raises Broken."""
    wanted = len(request.items)
    if isinstance(request.items[0], TextPair):
        rows = in_order(listed(value, "data", wanted), "scores")
        return Scores(scores=tuple(number(row.get("score"), "a score") for row in rows))
    if speaks == "togi":
        return _own_scores(value, wanted)
    if speaks == "sglang":
        check_error(value)
        rows = [fields(row, "a score") for row in items(value, "scores", wanted)]
        return Scores(scores=tuple(_only(row.get("embedding"), "embedding") for row in rows))
    rows = in_order(listed(value, "data", wanted), "scores")
    if path == "/pooling":
        return Scores(scores=tuple(_last(row.get("data")) for row in rows))
    return Scores(scores=tuple(_only(row.get("probs"), "probs") for row in rows))


def _own_scores(value: Any, wanted: int) -> Scores:
    found = listed(value, "scores", wanted)
    said = value.get("errors")
    errors = [None] * wanted if said is None else items(said, "errors", wanted)
    return Scores(
        scores=tuple(
            number(score, "a score") if error is None else text(error, "an error")
            for score, error in zip(found, errors, strict=True)
        )
    )


def _only(value: Any, what: str) -> float:
    found = items(value, what)
    if len(found) != 1:
        raise Broken(f"{what}: {len(found)} numbers; a reward model returns one, so this is not a reward model")
    return number(found[0], "a score")


def _last(value: Any) -> float:
    """The last number in a result of /pooling, which is one score, or one score per token."""
    while isinstance(value, list) and value:
        value = value[-1]
    return number(value, "a score")


def embeddings(request: EmbedRequest, model: str) -> Call:
    """POST /v1/embeddings."""
    return Call("/embeddings", {"model": model, "input": request.texts, "encoding_format": "float"})


def read_embeddings(request: EmbedRequest, value: Any) -> Vectors:
    """One row per text, in order. Raises Broken."""
    found = listed(value, "data", len(request.texts))
    rows = [items(row.get("embedding"), "an embedding") for row in in_order(found, "embeddings")]
    if len({len(row) for row in rows}) > 1 or not rows[0]:
        raise Broken(f"embeddings of different widths: {sorted({len(row) for row in rows})}")
    if any(type(each) not in (int, float) for row in rows for each in row):
        raise Broken("an embedding contains a value that is not a number")
    try:
        with np.errstate(over="ignore"):  # a number above float32 becomes infinite, and is refused below
            matrix = np.asarray(rows, np.float32)
    except OverflowError:
        raise Broken("an embedding contains a number that is not finite") from None
    if not np.isfinite(matrix).all():
        raise Broken("an embedding contains a number that is not finite")
    return Vectors(rows=matrix)
