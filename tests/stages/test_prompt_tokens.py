"""Requests to servers reserve the tokens that the declared tokenizer counts, never fewer than the server reads."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stub_server import KEY, stub_server
from tiny_run import tiny_model
from tokenizers_made import byte_bpe, tokenizers

from togi.client.endpoint import Budget, Endpoint
from togi.client.requests import ChatRequest, CompletionRequest, EmbedRequest, ScoreRequest, TextPair
from togi.core.errors import InputError, StageError
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.stages.context import Context, Control, Resolved
from togi.stages.endpoints import generator
from togi.stages.prompt_tokens import PromptTokens
from togi.text.render import render_prompt, render_text
from togi.text.template import TEMPLATES, get_template

PARAMS = SamplingParams(max_tokens=8, temperature=0.0)
TALK = (Message("system", "Be brief."), Message("user", "Why is the sky blue?"), Message("assistant", "Scattering."))
ASKED = (*TALK, Message("user", "空はなぜ青いのですか？"))


def chat(*messages: Message) -> ChatRequest:
    return ChatRequest(messages=messages, params=PARAMS)


def test_a_conversation_costs_what_the_template_renders():
    words = byte_bpe()
    template = get_template("chatml", words)
    count = PromptTokens(words, template)
    assert count(chat(*ASKED)) == len(render_prompt(template, words, ASKED)) < chat(*ASKED).prompt_bytes() + 100
    assert count(ScoreRequest(items=(TALK, TALK))) == 2 * len(render_text(template, words, TALK))
    schema = {"type": "object"}
    more = len(words(json.dumps(schema), add_special_tokens=True)["input_ids"])
    assert count(replace(chat(*ASKED), schema=schema)) == count(chat(*ASKED)) + more


@pytest.mark.parametrize("name", list(tokenizers()))
def test_without_a_template_no_built_in_one_would_write_more(name: str):
    words = tokenizers()[name]
    bare = PromptTokens(words, None)
    for template in TEMPLATES.values():
        own = replace(template, fixed_system=None).bind(words)
        assert len(render_prompt(own, words, ASKED)) <= bare(chat(*ASKED))
        assert len(render_text(own, words, TALK)) <= bare(ScoreRequest(items=(TALK,)))


def test_a_conversation_that_the_template_refuses_is_counted_by_its_contents():
    words = byte_bpe()
    odd = chat(Message("critic", "Why?"))
    assert PromptTokens(words, get_template("chatml", words))(odd) == PromptTokens(words, None)(odd)
    called = Message("user", "Why?", extra={"name": "a long name of a user"})
    assert PromptTokens(words, None)(chat(called)) > PromptTokens(words, None)(chat(Message("user", "Why?"))) + 5


def test_texts_are_counted_with_the_tokens_around_them():
    words = byte_bpe()
    count = PromptTokens(words, None)
    one = len(words("Why?", add_special_tokens=True)["input_ids"])
    assert count(CompletionRequest(prompt="Why?", params=PARAMS)) == one
    assert count(CompletionRequest(prompt=(5, 6, 7), params=PARAMS)) == 3
    assert count(EmbedRequest(texts=("Why?", "Why?"))) == 2 * one
    assert count(ScoreRequest(items=("Why?", (1, 2), TextPair("Why?", "Why?")))) == 3 * one + 2
    assert count(CompletionRequest(prompt="\ud800", params=PARAMS)) >= 1  # half a character


# --- in a stage -------------------------------------------------------------------------------------------------------

BASE = ModelRef("$teacher")


def asking(folder: Path, url: str, budget: Budget, **keys: Any) -> Context:
    """The context of a stage that asks a model on a server, whose tokenizer the recipe names."""
    source = ModelSource(kind="endpoint", name="small", **keys)
    asked = Endpoint(name="teacher", urls=(url,), model="small", key_env="STUB_KEY", budget=budget, protocol="openai")
    inputs: dict[str, Resolved] = {BASE: Resolved("model", source=source, endpoint=asked)}
    return Context("ask", folder, folder, 1, inputs, Control(send=lambda event: None), run="run")


def answers(context: Context) -> list[str]:
    prompt = Prompt(id="p", messages=(Message("user", "Why is the sky so blue, and the sea?"),))
    with context.leaving:
        (found,) = generator(context, BASE, batch_rows=1).generate([prompt], PARAMS)
    return [one.text for one in found]


@pytest.mark.parametrize("template", ["chatml", None])
def test_a_stage_reserves_by_the_declared_tokenizer(tmp_path: Path, monkeypatch, template: str | None):
    monkeypatch.setenv("STUB_KEY", KEY)
    tiny_model(tmp_path / "model")
    keys = {"tokenizer": str(tmp_path / "model")} | ({"template": template} if template else {})
    messages = (Message("user", "Why is the sky so blue, and the sea?"),)
    words = byte_bpe()
    wanted = PromptTokens(words, get_template(template, words) if template else None)(chat(*messages))
    with stub_server() as server, pytest.raises(StageError) as error:
        answers(asking(tmp_path, server.url, Budget(tokens=wanted), **keys))
    assert re.search(rf"\({wanted} input, 8 output", str(error.value)) and wanted != chat(*messages).prompt_bytes()


def test_a_tokenizer_is_read_only_where_a_limit_needs_it_and_a_request_is_sent(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    missing = {"tokenizer": str(tmp_path / "nowhere")}
    with stub_server() as server:
        with pytest.raises(
            InputError, match=r"models\.teacher\.tokenizer, which counts what requests may use: .*nowhere"
        ):
            answers(asking(tmp_path, server.url, Budget(tokens=10**6), **missing))
        first = answers(asking(tmp_path, server.url, Budget(), **missing))
        count = len(server.asked)
        assert answers(asking(tmp_path, server.url, Budget(tokens=10**6), **missing)) == first  # stored
        assert len(server.asked) == count
