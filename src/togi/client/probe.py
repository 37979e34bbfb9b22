"""Tests what a server can really do, before a request relies on it.

Servers silently ignore what they do not support: `transformers serve` returns one choice for n = 2, no
log-probabilities, different answers for the same seed, and prose despite a schema; vLLM returns a probability as a
score unless told not to. So each ability is tested with a few tokens before the first request that needs it, and only
then. Missing abilities are emulated (n choices by n requests, stop strings by cutting), reported in an alarm (seed,
schema), or refused (log-probabilities, token ids, raw scores). If a provider's filter withholds the answers of a test,
the ability is unknown, which is also reported.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from togi.client.answers import Answer, Choice, Scores
from togi.client.endpoint import Endpoint, Tokens
from togi.client.exchange import Exchange
from togi.client.requests import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    Generation,
    ScoreRequest,
    TextPair,
)
from togi.client.troubles import STORED, GivenUp, check_status, not_served
from togi.client.wire_base import Broken, Call, count, shown
from togi.core.errors import InputError, StageError
from togi.core.records import Message, SamplingParams

Tell = Callable[[str, str], None]
"""Receives the name of an alarm and its message."""
KNOWN = ("vllm", "sglang", "togi")
QUESTION = Message("user", "Name three colours.")
TEXT = "The three primary colours are"
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}},
    "required": ["colour"],
    "additionalProperties": False,
}
TEXTS = (
    "Q: What is 2 + 2? A: 4.",
    "Q: What is 2 + 2? A: Fish fish fish fish.",
    "Q: Who wrote Hamlet? A: William Shakespeare wrote it about 1600.",
    "zxq zxq zxq",
)
IDS = ((1, 2, 3), (3, 2, 1), (2, 2, 2, 2), (1, 3))
CHANCES = 3
BF16_SCORES = 8
"""The number of distinct scores that must all be bfloat16 values before the alarm."""


class Abilities:
    """The abilities of the server of one exchange, tested when first needed."""

    def __init__(self, exchange: Exchange, tell: Tell) -> None:
        self.exchange, self._tell = exchange, tell
        self.found: dict[str, bool | None] = {}  # None: tested, but unknown
        self._lock = asyncio.Lock()
        self._met = False
        self._told: set[str] = set()

    async def learn(self, request: AnyRequest) -> None:
        """Tests the abilities that `request` needs. Raises InputError if the server lacks one that togi cannot emulate,
        StageError if it gives no answer at all."""
        needed = _needs(request)
        if self._met and all(name in self.found for name in needed):
            return
        async with self._lock:
            if not self._met:
                await meet(self.exchange)
                self._met = True
            for name in needed:
                if name not in self.found:
                    await self._try(name, request)

    def tell(self, name: str, message: str) -> None:
        """Raises an alarm, once per name."""
        if name not in self._told:
            self._told.add(name)
            self._tell(name, f"model {self.exchange.endpoint.name}: {message}")

    def singly(self, request: AnyRequest) -> bool:
        """Whether the choices of a request must be requested one by one."""
        return isinstance(request, Generation) and request.params.n > 1 and not self.found[f"{request.kind}.n"]

    async def _try(self, name: str, request: AnyRequest) -> None:
        kind, _, ability = name.partition(".")
        try:
            works = await _TRIALS[ability](self.exchange, request)
        except GivenUp as error:
            if error.failure.reason == "filtered":
                self.found[name] = None
                if not self.exchange.dialect.stored:
                    self.tell(f"endpoint_{ability}", f"{HELD}: {_UNKNOWN[ability]}")
                return
            raise StageError(
                f"model {self.exchange.endpoint.name}: the server could not be tested ({ability}): {error}; {STORED}"
            ) from None
        self.found[name] = works
        if works:
            return
        message = _MISSING[ability].format(kind=kind, speaks=self.exchange.dialect.speaks)
        if ability in _REFUSED:
            raise InputError(f"model {self.exchange.endpoint.name}: {self.exchange.endpoint.urls[0]}: {message}")
        self.tell(f"endpoint_{ability}", message)


REPLAY = "replay"
"""The owner of the models of togi's replay server."""
HELD = "the provider's filter withheld the answers to the test requests"
_UNKNOWN = {
    "n": "it is unknown whether the server returns several choices; choices are requested one by one",
    "logprobs": "it is unknown whether the server returns log-probabilities; an answer without them counts as failed",
    "seed": "it is unknown whether the server honours `seed`; the stored answers keep the run repeatable",
    "schema": "it is unknown whether the server enforces a JSON schema; answers are read as they are",
    "stop": "it is unknown whether the server honours stop strings; togi cuts the answers itself",
    "ids": "it is unknown whether the server answers token ids with token ids; an answer without them counts as failed",
}
_REFUSED = ("logprobs", "ids", "scores")
_MISSING = {
    "n": "the server returns one choice when asked for several; choices are requested one by one",
    "logprobs": "the server returns no log-probabilities ({kind}); use a server that does (vLLM, SGLang, togi), "
    "or do not ask for them",
    "seed": "the server does not honour `seed`: asking again gives another answer; the stored answers keep the run "
    "repeatable",
    "schema": "the server does not enforce a JSON schema; answers are read as they are",
    "stop": "the server does not honour stop strings; togi cuts the answers itself",
    "ids": "the server does not answer token ids with token ids; use a server that does (vLLM, SGLang, togi)",
    "scores": "the server returns probabilities, but raw scores are needed; serve the reward model without an "
    "activation (vLLM: --pooler-config '{{\"use_activation\": false}}'), or with togi serve --reward",
}


def _needs(request: AnyRequest) -> list[str]:
    """The abilities that a request relies on."""
    if isinstance(request, ScoreRequest):
        return [f"{request.kind}.scores"]
    if not isinstance(request, Generation):
        return []
    params, schema = request.params, isinstance(request, ChatRequest) and request.schema is not None
    ids = isinstance(request, CompletionRequest) and not isinstance(request.prompt, str)
    wanted = {
        "ids": ids,
        "n": params.n > 1,
        "logprobs": params.logprobs > 0,
        "seed": request.seed is not None and params.temperature > 0,
        "stop": bool(params.stop),
        "schema": schema,
    }
    return [f"{request.kind}.{name}" for name, needed in wanted.items() if needed]


# --- the server -------------------------------------------------------------------------------------------------------


async def meet(exchange: Exchange) -> None:
    """Finds the server's protocol and checks that it has the model, from GET /models if the server supports it.

    Raises InputError if there is no server, it refuses the key, or vLLM or togi does not list the model.
    """
    endpoint, dialect = exchange.endpoint, exchange.dialect
    reply = await exchange.get("/models")
    if reply.status == 401 or 300 <= reply.status < 400:
        check_status(reply, endpoint, f"{endpoint.bases[0]}/models")
    listed = _listed(reply.json()) if reply.status == 200 and _is_json(reply.body) else []
    owners = {owner.lower() for row in listed if isinstance(owner := row.get("owned_by"), str)}
    dialect.stored = REPLAY in owners
    dialect.speaks = endpoint.protocol
    if endpoint.protocol == "auto":
        dialect.speaks = next((name for name in KNOWN if name in owners), "openai")
    ours = next((row for row in listed if row.get("id") == endpoint.model), None)
    if ours is not None:
        dialect.context = count(ours.get("max_model_len"))
    if listed and ours is None and owners & {"vllm", "togi"}:
        names = ", ".join(shown(row.get("id")) for row in listed[:8])
        raise not_served(endpoint, endpoint.urls[0], f"it serves {names}")


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _listed(value: Any) -> list[dict[str, Any]]:
    rows = value.get("data") if isinstance(value, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


# --- tests of abilities -----------------------------------------------------------------------------------------------


async def _ask(exchange: Exchange, request: AnyRequest) -> Any:
    """The JSON of the reply to a request, or None if the server refuses it or sends no readable reply."""

    async def take(value: Any, reserved: Tokens) -> Any:
        await exchange.settle_reply(value, reserved)
        return value

    try:
        return await exchange.fetch(
            lambda: exchange.dialect.call(request, exchange.endpoint.model), exchange.cost(request), take
        )
    except GivenUp as error:
        if error.failure.reason not in ("refused", "too_long", "broken"):
            raise
        return None


def _read(exchange: Exchange, request: AnyRequest, value: Any) -> Any:
    """The answer in a reply, or None if it is not what was asked for. Raises GivenUp if the provider's filter withheld
    it, which says nothing about the server."""
    try:
        return None if value is None else exchange.dialect.read(request, value)
    except Broken as broken:
        if broken.filtered:
            raise GivenUp("filtered", str(broken)) from None
        return None


async def _answer(exchange: Exchange, request: AnyRequest) -> Any:
    """The answer to a request, or None if the server cannot give it. A bad reply may be chance, so the request is
    repeated up to CHANCES times. Raises GivenUp if a filter withheld the last answer too."""
    for left in reversed(range(CHANCES)):
        if (value := await _ask(exchange, request)) is None:
            return None
        try:
            if (found := _read(exchange, request, value)) is not None:
                return found
        except GivenUp:
            if not left:
                raise
    return None


def _small(request: AnyRequest, **settings: Any) -> Generation:
    """A short request of the same kind."""
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 4, **settings})
    if isinstance(request, ChatRequest):
        return ChatRequest(messages=(QUESTION,), params=params)
    assert isinstance(request, CompletionRequest)
    return CompletionRequest(prompt=TEXT if isinstance(request.prompt, str) else request.prompt[:8], params=params)


async def _gives_n(exchange: Exchange, request: AnyRequest) -> bool:
    return await _answer(exchange, _small(request, n=2, temperature=1.0)) is not None


async def _gives_logprobs(exchange: Exchange, request: AnyRequest) -> bool:
    return await _answer(exchange, _small(request, logprobs=1)) is not None


async def _gives_ids(exchange: Exchange, request: AnyRequest) -> bool:
    found = await _answer(exchange, _small(request))
    return found is not None and all(choice.token_ids for choice in found.choices)


async def _heeds_seed(exchange: Exchange, request: AnyRequest) -> bool:
    """Whether the same seed gives the same text twice, at a temperature at which chance alone would not."""
    asked = replace(_small(request, temperature=1.0, max_tokens=16), seed=20_231)
    first: Answer | None = await _answer(exchange, asked)
    if first is None:
        exchange.dialect.without.add("seed")
        return False
    second: Answer | None = await _answer(exchange, asked)
    return second is not None and first.text == second.text


async def _heeds_stop(exchange: Exchange, request: AnyRequest) -> bool:
    """Whether a greedy answer ends before a piece of itself that is given as a stop string."""
    free: Answer | None = await _answer(exchange, _small(request, max_tokens=12))
    if free is None or len(free.text) < 4:
        return True  # too short to test with; answers are cut in any case
    middle = len(free.text) // 2
    piece = free.text[middle : middle + 2]
    asked = _small(request, max_tokens=12, stop=(piece,))
    found = await _ask(exchange, asked)
    if found is None:
        exchange.dialect.without.add("stop")
    said: Answer | None = _read(exchange, replace(asked, params=replace(asked.params, stop=())), found)
    return said is not None and piece not in said.text


async def _heeds_schema(exchange: Exchange, request: AnyRequest) -> bool:
    assert isinstance(request, ChatRequest)
    asked = ChatRequest(messages=(QUESTION,), params=SamplingParams(temperature=0.0, max_tokens=48), schema=SCHEMA)
    found: Answer | None = await _answer(exchange, asked)
    if found is not None and _follows(found.choices[0]):
        return True
    exchange.dialect.without.add("schema")
    return False


def _follows(choice: Choice) -> bool:
    """Whether an answer follows SCHEMA; of a truncated answer only the beginning is checked."""
    if choice.finish == "length":
        return choice.text.lstrip().startswith("{")
    try:
        value = json.loads(choice.text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and list(value) == ["colour"]


async def _gives_raw_scores(exchange: Exchange, request: AnyRequest) -> bool:
    """Whether scores are the raw output of the model's head, not probabilities computed from it.

    Scores that are all within [0, 1] may be either; with vLLM, they are then compared with scores under an activation,
    which must differ.
    """
    assert isinstance(request, ScoreRequest)
    asked = ScoreRequest(items=_like(request.items[0]))
    found: Scores | None = await _answer(exchange, asked)
    if found is None and exchange.dialect.speaks == "vllm" and exchange.dialect.score_path == "/classify":
        exchange.dialect.score_path = "/pooling"
        found = await _answer(exchange, asked)
    if found is None:
        raise InputError(
            f"model {exchange.endpoint.name}: {exchange.endpoint.urls[0]} returns no scores; serve the reward model "
            "with togi serve --reward, vLLM (--runner pooling) or SGLang (--is-embedding), and set protocol"
        )
    values = [score for score in found.scores if isinstance(score, float)]
    if exchange.dialect.speaks != "vllm" or not all(0.0 <= value <= 1.0 for value in values):
        return True
    return await _activated(exchange, asked) != found.scores


async def _activated(exchange: Exchange, asked: ScoreRequest) -> Any:
    """The scores of vLLM with an activation: probabilities."""

    def call() -> Call:
        raw = exchange.dialect.call(asked, exchange.endpoint.model)
        return replace(raw, body={**raw.body, "use_activation": True})

    async def take(value: Any, reserved: Tokens) -> Any:
        await exchange.settle_reply(value, reserved)
        return _read(exchange, asked, value)

    found = await exchange.fetch(call, exchange.cost(asked), take)
    return None if found is None else found.scores


def _like(item: Any) -> tuple[Any, ...]:
    """Texts to test a scorer with, in the same form as `item`."""
    if isinstance(item, TextPair):
        return tuple(TextPair("What is 2 + 2?", text) for text in TEXTS)
    if isinstance(item, str):
        return TEXTS
    if item and isinstance(item[0], Message):
        return tuple((QUESTION, Message("assistant", text)) for text in TEXTS)
    return IDS


_TRIALS: dict[str, Callable[[Exchange, AnyRequest], Any]] = {
    "n": _gives_n,
    "logprobs": _gives_logprobs,
    "ids": _gives_ids,
    "seed": _heeds_seed,
    "stop": _heeds_stop,
    "schema": _heeds_schema,
    "scores": _gives_raw_scores,
}


# --- rounded numbers --------------------------------------------------------------------------------------------------


def on_bf16_steps(scores: Sequence[float]) -> bool:
    """Whether all scores, if there are enough, are bfloat16 values, as from a head that computes in bfloat16.
    Neighbouring values then differ by 1 part in 128 to 256, so close scores tie."""
    values = np.asarray([score for score in scores if score and not float(score * 8).is_integer()], np.float64)
    if len(np.unique(values)) < BF16_SCORES:
        return False
    single = values.astype(np.float32)
    return bool((single == values).all() and not (single.view(np.uint32) & 0xFFFF).any())


def endpoint_facts(abilities: Abilities, endpoint: Endpoint) -> dict[str, Any]:
    """What is known of the server, for reports."""
    dialect = abilities.exchange.dialect
    context = {} if dialect.context is None else {"context": dialect.context}
    return {
        "model": endpoint.model,
        "revision": endpoint.revision,
        "protocol": dialect.speaks,
        **context,
        **abilities.found,
    }
