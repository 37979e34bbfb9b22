"""The requests and replies of each protocol, against servers that use it, and replies that do not fit the request."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_answers import score
from client_asks import chats, client, endpoint
from hostile import hostile

from togi.client.answers import Answer, Choice, Failure, Scores, Vectors, dump, load
from togi.client.endpoint import Tokens
from togi.client.requests import ChatRequest, CompletionRequest, EmbedRequest, ScoreRequest, TextPair, request_key
from togi.client.wire import Dialect, usage_of
from togi.client.wire_base import Broken
from togi.core.errors import InputError
from togi.core.records import Message, SamplingParams

IDS = (5, 6, 7)


def ask_one(tmp_path: Path, request: Any, speaks: str, **server: Any) -> Any:
    with hostile(speaks=speaks, **server) as running, client(tmp_path, endpoint(running.url)) as asked:
        return next(iter(asked.ask([request])))


@pytest.mark.parametrize("speaks", ["vllm", "togi", "sglang"])
def test_ids_are_answered_with_ids_and_log_probabilities(tmp_path: Path, speaks: str) -> None:
    params = SamplingParams(n=3, max_tokens=6, logprobs=1, top_k=20, min_p=0.1, repetition_penalty=1.1)
    found = ask_one(tmp_path, CompletionRequest(prompt=IDS, params=params, seed=4), speaks)
    assert isinstance(found, Answer) and len(found.choices) == 3
    for choice in found.choices:
        assert len(choice.token_ids) == len(choice.tokens) == len(choice.logprobs) == len(choice.top) > 0
        assert "".join(choice.tokens) == choice.text
        assert all(value < 0 for value in choice.logprobs)
        assert choice.top[0] == ((choice.tokens[0], choice.logprobs[0]),)


@pytest.mark.parametrize("speaks", ["openai", "vllm", "sglang", "togi"])
def test_chats_and_texts_have_log_probabilities_everywhere(tmp_path: Path, speaks: str) -> None:
    params = SamplingParams(max_tokens=6, logprobs=1, n=2)
    chat = ChatRequest(messages=(Message("documents", "[]"), Message("user", "q")), params=params)
    for request in (chat, CompletionRequest(prompt="once", params=params)):
        found = ask_one(tmp_path / request.kind, request, speaks)
        assert [len(choice.logprobs) > 0 for choice in found.choices] == [True, True]
        assert found.usage.output > 0


@pytest.mark.parametrize("speaks", ["vllm", "sglang"])
def test_scores_are_raw_and_in_order(tmp_path: Path, speaks: str) -> None:
    texts = tuple(f"text {i}" for i in range(8))
    assert ask_one(tmp_path, ScoreRequest(items=texts), speaks).scores == tuple(map(score, texts))
    ids = ((1, 2), (3, 4, 5))
    assert ask_one(tmp_path, ScoreRequest(items=ids), speaks).scores == tuple(score(list(each)) for each in ids)


def test_togi_scores_conversations_and_says_which_it_cannot(tmp_path: Path) -> None:
    chat = (Message("user", "q"), Message("assistant", "a"))
    found = ask_one(tmp_path, ScoreRequest(items=("fine", "unscorable", chat)), "togi")
    said = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert found.scores == (score({"text": "fine"}), "the text is empty", score(said))


def test_vllm_scores_pairs(tmp_path: Path) -> None:
    found = ask_one(tmp_path, ScoreRequest(items=(TextPair("q", "d"), TextPair("q", "e"))), "vllm")
    assert found.scores == (score(["q", "d"]), score(["q", "e"]))


def test_embeddings_come_in_the_order_of_their_texts(tmp_path: Path) -> None:
    both = ask_one(tmp_path / "both", EmbedRequest(texts=("one", "two")), "openai")
    two = ask_one(tmp_path / "two", EmbedRequest(texts=("two",)), "openai")
    assert both.rows.shape == (2, 8) and both.rows.dtype == np.float32
    assert (both.rows[1] == two.rows[0]).all() and (both.rows[0] != both.rows[1]).any()


@pytest.mark.parametrize(
    "request_",
    [
        chats(1, top_k=5)[0],
        CompletionRequest(prompt=IDS, params=SamplingParams()),
        ScoreRequest(items=("text",)),
    ],
)
def test_what_the_protocol_cannot_say_is_refused(tmp_path: Path, request_: Any) -> None:
    with pytest.raises(InputError, match="the protocol openai has no"):
        ask_one(tmp_path, request_, "openai")


def test_all_sampling_settings_are_sent_to_servers_with_defaults_of_their_own() -> None:
    body = Dialect("vllm").call(chats(1)[0], "m").body
    assert {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "max_tokens"} <= set(body)


def test_more_stop_strings_than_openai_takes_are_cut_here() -> None:
    request = chats(1, stop=("a", "b", "c", "d", "fish"))[0]
    assert Dialect("openai").call(request, "m").body["stop"] == ("a", "b", "c", "d")
    message = {"content": "one fish two"}
    reply = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    found = Dialect("openai").read(request, reply)
    assert isinstance(found, Answer) and found.choices == (Choice(text="one ", finish="stop_string"),)


def test_a_cut_answer_loses_its_tokens_too() -> None:
    request = CompletionRequest(prompt="p", params=SamplingParams(stop=("END",), logprobs=1))
    said = {"tokens": ["go", " on", " E", "ND x"], "token_logprobs": [-1, -2, -3, -4]}
    said["top_logprobs"] = [{token: -1.0} for token in said["tokens"]]
    reply = {"choices": [{"index": 0, "text": "go on END x", "finish_reason": "length", "logprobs": said}]}
    found = Dialect("vllm").read(request, reply)
    assert isinstance(found, Answer)
    choice = found.choices[0]
    assert (choice.text, choice.finish, choice.tokens, choice.logprobs) == (
        "go on ", "stop_string", ("go", " on", " E"), (-1.0, -2.0, -3.0)
    )  # fmt: skip


GOOD = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ([], "the reply is not an object"),
        ({"choices": []}, "received 0, expected 1"),
        ({"choices": [GOOD, GOOD]}, "received 2, expected 1"),
        ({"choices": [GOOD | {"index": 3}]}, r"the indices are \[3\]"),
        ({"choices": [GOOD | {"finish_reason": None}]}, "incomplete"),
        ({"choices": [GOOD | {"finish_reason": "abort"}]}, "incomplete"),
        ({"choices": [GOOD | {"message": {"content": 5}}]}, "not text"),
        ({"choices": [GOOD | {"message": "x"}]}, "not an object"),
    ],
)
def test_a_reply_that_is_not_the_answer(reply: Any, said: str) -> None:
    with pytest.raises(Broken, match=said):
        Dialect("openai").read(chats(1)[0], reply)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1.0", True])
def test_a_score_is_a_finite_number(value: Any) -> None:
    with pytest.raises(Broken, match="finite number"):
        Dialect("vllm").read(ScoreRequest(items=("a",)), {"data": [{"index": 0, "probs": [value]}]})


def test_a_classifier_is_no_reward_model() -> None:
    with pytest.raises(Broken, match="a reward model returns one"):
        Dialect("vllm").read(ScoreRequest(items=("a",)), {"data": [{"index": 0, "probs": [0.1, 0.9]}]})


def test_a_filtered_answer_is_not_asked_for_again(tmp_path: Path) -> None:
    with pytest.raises(Broken) as error:
        Dialect("openai").read(chats(1)[0], {"choices": [GOOD | {"finish_reason": "content_filter"}]})
    assert error.value.filtered


def test_usage_is_read_or_unknown() -> None:
    assert usage_of({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}) == Tokens(3, 4)
    assert usage_of([{"meta_info": {"prompt_tokens": 3}}, {"meta_info": {"prompt_tokens": 1}}]) == Tokens(4, 0)
    assert (
        usage_of({"usage": None}) is None
        and usage_of({"usage": {"prompt_tokens": -1}}) is None
        and usage_of([5]) is None
    )


def test_answers_are_read_back_as_they_were() -> None:
    choice = Choice(
        text="é\ud7ff", finish="length", token_ids=(1,), tokens=("é",), logprobs=(-0.1,), top=((("é", -0.1),),)
    )
    for answer in (
        Answer(choices=(choice, Choice(text="", finish="stop")), usage=Tokens(3, 4)),
        Scores(scores=(0.1 + 0.2, -math.pi, "an error")),
    ):
        assert load(dump(answer)) == answer
    rows = np.asarray([[0.1, -3.5], [1e-30, 2.0]], np.float32)
    found = load(dump(Vectors(rows=rows)))
    assert isinstance(found, Vectors) and (found.rows == rows).all()


def test_the_key_of_a_request_follows_from_what_changes_its_answer() -> None:
    one = chats(1)[0]
    same = ChatRequest(messages=one.messages, params=SamplingParams(max_tokens=8, temperature=0.0, seed=99), index=5)
    keys = {request_key(each, "m", "r") for each in (one, same)}
    others = [
        chats(1, max_tokens=9)[0],
        chats(1, top_k=3)[0],
        chats(2)[1],
        ChatRequest(messages=one.messages, params=one.params, seed=0),
    ]
    keys |= {request_key(each, "m", "r") for each in others} | {request_key(one, "m", "s"), request_key(one, "n", "r")}
    assert len(keys) == 1 + len(others) + 2


def test_nan_scores_that_pass_are_asked_for_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.01)
    with (
        hostile(speaks="vllm", faults=["nan", "order"], rate=0.6) as server,
        client(tmp_path, endpoint(server.url)) as asked,
    ):
        requests = [ScoreRequest(items=(f"a{i}", f"b{i}")) for i in range(12)]
        found = list(asked.ask(requests))
        assert not any(isinstance(each, Failure) for each in found)
        assert [each.scores for each in found] == [tuple(map(score, request.items)) for request in requests]
        assert server.stats()["nan"] > 0
