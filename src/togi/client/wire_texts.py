"""Chats and completions: OpenAI's form, the additions of vLLM and SGLang, and SGLang's own /generate.

All sampling settings are sent, even those without effect, because servers fill missing ones from the model's
generation_config.json.
"""

from collections.abc import Sequence
from typing import Any

from togi.client.answers import Answer, Choice, Finish
from togi.client.requests import ChatRequest, CompletionRequest, Generation, message_json
from togi.client.wire_base import (
    Broken,
    Call,
    check_error,
    count,
    fields,
    in_order,
    items,
    listed,
    number,
    shown,
    text,
    token_ids,
)

STOPS_OF_OPENAI = 4
"""OpenAI refuses more stop strings; the client cuts answers at the others itself."""
ENDS: dict[str, Finish] = {
    "stop": "stop", "eos": "stop", "end_turn": "stop", "stop_sequence": "stop",
    "length": "length", "max_tokens": "length",
}  # fmt: skip

STOPPED = tuple(said for said, finish in ENDS.items() if finish == "stop")
REASONING = ("reasoning_content", "reasoning")
"""The fields in which servers return a model's reasoning."""

Top = tuple[tuple[tuple[str, float], ...], ...]
Logprobs = tuple[tuple[str, ...], tuple[float, ...], Top]
"""Tokens, their log-probabilities, and the most likely tokens at each position."""


# --- requests ---------------------------------------------------------------------------------------------------------


def chat(request: ChatRequest, model: str, speaks: str, max_tokens: str) -> Call:
    """POST /v1/chat/completions."""
    messages = [message_json(message) for message in request.messages]
    body = {"model": model, "messages": messages, **_sampling(request, speaks), max_tokens: request.params.max_tokens}
    if request.params.logprobs:
        body |= {"logprobs": True, "top_logprobs": request.params.logprobs}
    if request.schema is not None:
        schema = {"name": "answer", "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return Call("/chat/completions", body)


def completion(request: CompletionRequest, model: str, speaks: str) -> Call:
    """POST /v1/completions with a text, or with ids; the answer to ids contains ids."""
    ids = not isinstance(request.prompt, str)
    body = {"model": model, "prompt": request.prompt, **_sampling(request, speaks)}
    body["max_tokens"] = request.params.max_tokens
    if request.params.logprobs:
        body["logprobs"] = request.params.logprobs
    if ids:
        body["return_token_ids"] = True
    return Call("/completions", body)


def generate(request: CompletionRequest) -> Call:
    """POST /generate of SGLang, with ids."""
    params = request.params
    sampling: dict[str, Any] = {
        "n": params.n,
        "max_new_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
    }
    if params.stop:
        sampling["stop"] = params.stop
    if request.seed is not None:
        sampling["sampling_seed"] = request.seed
    body: dict[str, Any] = {"input_ids": request.prompt, "sampling_params": sampling}
    if params.logprobs:
        body |= {"return_logprob": True, "top_logprobs_num": params.logprobs, "return_text_in_logprobs": True}
    return Call("/generate", body, at_root=True)


def _sampling(request: Generation, speaks: str) -> dict[str, Any]:
    params = request.params
    said: dict[str, Any] = {"n": params.n, "temperature": params.temperature, "top_p": params.top_p}
    if speaks != "openai":
        # 0 switches top_k off in vLLM and togi, -1 in SGLang
        top_k = params.top_k or (-1 if speaks == "sglang" else 0)
        said |= {"top_k": top_k, "min_p": params.min_p, "repetition_penalty": params.repetition_penalty}
    if params.stop:
        said["stop"] = params.stop[:STOPS_OF_OPENAI] if speaks == "openai" else params.stop
    if request.seed is not None:
        said["seed"] = request.seed
    return said


# --- replies ----------------------------------------------------------------------------------------------------------


def read_chat(request: ChatRequest, value: Any) -> Answer:
    """The choices of a chat reply. Raises Broken."""
    choices = []
    for row in _choices(request, value):
        written = _written(row)
        tokens, logprobs, top = _chat_logprobs(request, row, written)
        choices.append(
            _choice(request, row, Choice(text=written, finish="stop", tokens=tokens, logprobs=logprobs, top=top))
        )
    return Answer(choices=tuple(choices))


def _written(row: dict[str, Any]) -> str:
    """The text of a chat's choice. Raises Broken if there is none because the model refused, or only reasoned."""
    message = fields(row.get("message"), "a choice's message")
    if message.get("content"):
        return text(message["content"], "a choice's content")
    if refusal := message.get("refusal"):
        raise Broken(f"the model refuses to answer: {text(refusal, 'a refusal')[:300]}", filtered=True)
    if row.get("finish_reason") in STOPPED and any(message.get(key) for key in REASONING):
        raise Broken("the reply contains only the model's reasoning, and no answer")
    return text(message.get("content") or "", "a choice's content")


def read_completion(request: CompletionRequest, value: Any) -> Answer:
    """The choices of a completion. Raises Broken."""
    choices = []
    for row in _choices(request, value):
        written = text(row.get("text"), "a choice's text")
        tokens, logprobs, top = _plain_logprobs(request, row, written)
        ids = () if isinstance(request.prompt, str) else token_ids(row.get("token_ids"))
        made = Choice(text=written, finish="stop", token_ids=ids, tokens=tokens, logprobs=logprobs, top=top)
        choices.append(_choice(request, row, made))
    return Answer(choices=tuple(choices))


def read_generate(request: CompletionRequest, value: Any) -> Answer:
    """The samples of SGLang's /generate. Raises Broken."""
    check_error(value, "meta_info")
    rows = items(value if isinstance(value, list) else [value], "samples", request.params.n)
    return Answer(choices=tuple(_generated(request, fields(row, "a sample")) for row in rows))


def _generated(request: CompletionRequest, row: dict[str, Any]) -> Choice:
    meta = fields(row.get("meta_info"), "meta_info")
    end = fields(meta.get("finish_reason"), "finish_reason")
    logprobs, tokens, top = (), (), ()
    if request.params.logprobs:
        places = [_place(place) for place in items(meta.get("output_token_logprobs"), "output_token_logprobs")]
        tokens, logprobs = tuple(token for token, _ in places), tuple(logprob for _, logprob in places)
        found = items(meta.get("output_top_logprobs"), "output_top_logprobs", len(places))
        top = tuple(tuple(_place(each) for each in items(place, "top log-probabilities")) for place in found)
    said = {"finish_reason": end.get("type"), "stop_reason": end.get("matched")}
    ids, written = token_ids(row.get("output_ids")), text(row.get("text", ""), "a sample's text")
    made = Choice(text=written, finish="stop", token_ids=ids, tokens=tokens, logprobs=logprobs, top=top)
    return _choice(request, said, made)


def _place(place: Any) -> tuple[str, float]:
    logprob, token, written = items(place, "a log-probability", 3)
    if written is None and count(token) is not None:
        written = f"token_id:{token}"
    return text(written, "a token"), number(logprob, "a log-probability")


def _choices(request: Generation, value: Any) -> list[dict[str, Any]]:
    return in_order(listed(value, "choices", request.params.n), "choices")


def _choice(request: Generation, row: dict[str, Any], made: Choice) -> Choice:
    """`made` with its finish reason, cut at the first stop string that a server left in it. Raises Broken if the choice
    is incomplete."""
    said = row.get("finish_reason")
    if said == "content_filter":
        raise Broken("the provider's filter withheld the answer", filtered=True)
    if not isinstance(said, str) or said not in ENDS:
        raise Broken(f"a choice is incomplete: its finish_reason is {shown(said)}")
    finish = ENDS[said]
    if finish == "stop" and row.get("stop_reason") in request.params.stop:
        finish = "stop_string"
    return _cut(made, request.params.stop, finish)


def _cut(made: Choice, stops: Sequence[str], finish: Finish) -> Choice:
    found = [place for stop in stops if (place := made.text.find(stop)) >= 0]
    kept = made.text[: min(found)] if found else made.text
    tokens = len(made.tokens)
    if found and made.tokens:
        tokens = _tokens_of(made.tokens, len(kept))
    return Choice(
        text=kept,
        finish="stop_string" if found else finish,
        token_ids=made.token_ids[:tokens] if found and made.tokens else made.token_ids,
        tokens=made.tokens[:tokens],
        logprobs=made.logprobs[:tokens],
        top=made.top[:tokens],
    )


def _tokens_of(tokens: Sequence[str], characters: int) -> int:
    """The number of tokens that begin within the first `characters`."""
    seen = 0
    for number_, token in enumerate(tokens):
        if seen >= characters:
            return number_
        seen += len(token)
    return len(tokens)


# --- log-probabilities ------------------------------------------------------------------------------------------------


def _chat_logprobs(request: ChatRequest, row: dict[str, Any], written: str) -> Logprobs:
    if not request.params.logprobs:
        return (), (), ()
    content = fields(row.get("logprobs"), "logprobs").get("content")
    places = [fields(place, "an entry of logprobs") for place in items(content, "logprobs")]
    _some(places, written)
    tokens = tuple(text(place.get("token"), "a token") for place in places)
    logprobs = tuple(number(place.get("logprob"), "a log-probability") for place in places)
    return tokens, logprobs, tuple(_likeliest(place.get("top_logprobs")) for place in places)


def _likeliest(value: Any) -> tuple[tuple[str, float], ...]:
    found = [fields(each, "an entry of top_logprobs") for each in items(value, "top_logprobs")]
    pairs = [(text(each.get("token"), "a token"), number(each.get("logprob"), "a log-probability")) for each in found]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _plain_logprobs(request: CompletionRequest, row: dict[str, Any], written: str) -> Logprobs:
    if not request.params.logprobs:
        return (), (), ()
    said = fields(row.get("logprobs"), "logprobs")
    tokens = tuple(text(token, "a token") for token in items(said.get("tokens"), "tokens"))
    found = items(said.get("token_logprobs"), "token_logprobs", len(tokens))
    _some(found, written)
    top = items(said.get("top_logprobs"), "top_logprobs", len(tokens))
    return tokens, tuple(number(each, "a log-probability") for each in found), tuple(map(_ranked, top))


def _ranked(place: Any) -> tuple[tuple[str, float], ...]:
    found = fields(place, "top_logprobs").items()
    pairs = [(text(token, "a token"), number(value, "a log-probability")) for token, value in found]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _some(places: Sequence[Any], written: str) -> None:
    if written and not places:
        raise Broken("logprobs is empty, but the answer is not")
