"""Sampling settings for what a request leaves out, and the safety prompt of conversations without a system prompt."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from served import ask, said, serving

from togi.core.protocols import Request
from togi.core.records import Message
from togi.core.sampling import Drawing, Recommended
from togi.rollout.local import Sampler
from togi.serve.app import Served
from togi.serve.bodies import MAX_TOKENS, ChatBody
from togi.serve.chat import Speaker, chat_app
from togi.text.render import render_prompt

SAFETY = "Be safe."
TALK = [{"role": "user", "content": "Hi"}]
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
VIKHR = {**PLAIN, "temperature": 0.3, "top_k": 40}


@pytest.fixture
def server(model, monkeypatch) -> Iterator[SimpleNamespace]:
    """Two models: one with a preset and a safety prompt, one without; and the requests that the first one's engine
    gets."""
    heard: list[Request] = []

    def beside(name: str, sampling: Recommended | None, safety: str) -> tuple[Served, Speaker]:
        engine = Sampler(model.net, model.tokenizer, model.template.terminator)
        add = engine.add
        monkeypatch.setattr(engine, "add", lambda request: heard.append(request) or add(request))
        served = Served(
            name=name, kind="causal", limit=model.context, vocabulary=300, sampling=sampling, default_system=safety
        )
        return served, Speaker(engine=engine, tokenizer=model.tokenizer, template=model.template)

    app = chat_app(*beside("warm", Recommended.of("vikhr-nemo"), SAFETY), beside=[beside("plain", None, "")])
    with serving(app) as url:
        yield SimpleNamespace(url=url, heard=heard)


def used(server: SimpleNamespace, path: str = "chat/completions", **body: Any) -> dict[str, Any]:
    """The sampling settings that the engine got for a request."""
    asked = {"model": "warm", "max_tokens": 2, **({"messages": TALK} if "chat" in path else {"prompt": "Hi"}), **body}
    status, text = said(f"{server.url}/v1/{path}", asked)
    assert status == 200, text
    return {name: getattr(server.heard[-1].params, name) for name in PLAIN}


def test_what_a_request_leaves_out_is_as_recommended(server):
    assert used(server) == used(server, "completions") == used(server, stream=True) == VIKHR
    assert used(server, temperature=None, top_k=None) == VIKHR
    assert used(server, temperature=0.9, top_k=-1, repetition_penalty=1.2) == {
        **PLAIN,
        "temperature": 0.9,
        "repetition_penalty": 1.2,
    }
    assert used(server, model="plain") == PLAIN


@pytest.mark.parametrize(
    ("recommended", "room", "longest"), [(100, 5000, MAX_TOKENS), (2048, 5000, 2048), (2048, 300, 300)]
)
def test_a_recommended_length_makes_answers_longer_never_shorter(recommended, room, longest):
    body = ChatBody.model_validate({"model": "m", "messages": TALK})
    assert body.params(room, 0, Drawing(max_tokens=recommended)).max_tokens == longest
    given = ChatBody.model_validate({"model": "m", "messages": TALK, "max_tokens": 7})
    assert given.params(room, 0, Drawing(max_tokens=recommended)).max_tokens == 7


def test_clients_can_read_the_settings(server):
    one, other = ask(f"{server.url}/v1/models")[1]["data"]
    assert one["sampling"] == {**VIKHR, "max_tokens": 2048, "preset": "vikhr-nemo"}
    assert one["default_system"] == SAFETY
    assert not {"sampling", "system", "default_system"} & set(other)


def test_the_warning_of_a_card_is_logged_once(server, caplog):
    used(server, temperature=0.9)
    used(server, model="plain", temperature=1.5)
    assert not caplog.records
    for temperature in (1.0, 1.5):
        used(server, temperature=temperature)
    (record,) = caplog.records
    assert record.getMessage() == (
        "warm: temperature 1: the card of vikhr-nemo warns of random defects in answers at 1, and recommends 0.1 to "
        "0.5; this is said once"
    )


def test_the_safety_prompt_is_for_conversations_without_a_system_prompt(model, server):
    def read(name: str, *messages: dict[str, str]) -> tuple[int, ...]:
        used(server, model=name, messages=messages)
        tokens = ask(f"{server.url}/tokenize", {"model": name, "messages": messages})[1]["tokens"]
        assert tokens == list(server.heard[-1].prompt_ids)  # what a client counts is what is computed
        return server.heard[-1].prompt_ids

    def ids(*messages: Message) -> tuple[int, ...]:
        return tuple(render_prompt(model.template, model.tokenizer, messages))

    own = {"role": "system", "content": "Rhyme."}
    assert read("warm", *TALK) == ids(Message("system", SAFETY), Message("user", "Hi"))
    kept = ids(Message("system", "Rhyme."), Message("user", "Hi"))
    assert read("warm", own, *TALK) == read("plain", own, *TALK) == kept
    assert read("plain", *TALK) == ids(Message("user", "Hi"))
    used(server, "completions", prompt="Hi")
    assert list(server.heard[-1].prompt_ids) == model.tokenizer("Hi")["input_ids"]
