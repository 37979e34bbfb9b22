"""Features that a server silently ignores are detected before use: then emulated, reported, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_asks import chats, client, endpoint, texts
from hostile import hostile

from togi.client.client import Client
from togi.client.probe import QUESTION, on_bf16_steps
from togi.client.requests import ChatRequest, CompletionRequest, ScoreRequest
from togi.client.store import AnswerStore
from togi.core.errors import InputError, StageError
from togi.core.records import Message, SamplingParams


def test_nothing_is_tried_that_nobody_needs(tmp_path: Path) -> None:
    with hostile() as server, client(tmp_path, endpoint(server.url)) as asked:
        texts(list(asked.ask(chats(3))))
        assert server.stats()["requests"] == 4  # one is for the list of models
        assert asked.facts() == {"model": "m", "revision": "", "protocol": "openai"}


def test_choices_are_asked_for_one_by_one_where_n_is_dropped(tmp_path: Path) -> None:
    asked_for = [
        ChatRequest(messages=each.messages, params=each.params, seed=7) for each in chats(6, n=3, temperature=1.0)
    ]
    with hostile(lacks=["n"]) as server:
        with client(tmp_path, endpoint(server.url), alarms := []) as asked:
            found = list(asked.ask(asked_for))
            first = server.stats()["requests"]
        assert [len(each.choices) for each in found] == [3] * 6
        assert len({choice.text for each in found for choice in each.choices}) == 18  # each has its own seed
        assert alarms == ["endpoint_n"]
        with client(tmp_path, endpoint(server.url)) as asked:
            assert [each.choices for each in asked.ask(asked_for)] == [each.choices for each in found]
            assert asked.progress.stored == 6 and server.stats()["requests"] == first


@pytest.mark.parametrize(("lacking", "alarm"), [("seed", "endpoint_seed"), ("schema", "endpoint_schema")])
def test_what_can_be_done_without_is_told(tmp_path: Path, lacking: str, alarm: str) -> None:
    params = SamplingParams(max_tokens=24, temperature=1.0)
    schema = {"type": "object"} if lacking == "schema" else None
    request = ChatRequest(messages=(Message("user", "q"),), params=params, seed=3, schema=schema)
    for lacks in ([], [lacking]):
        with hostile(lacks=lacks) as server, client(tmp_path / str(lacks), endpoint(server.url), alarms := []) as asked:
            texts(list(asked.ask([request])))
        assert alarms == ([alarm] if lacks else [])
        assert asked.facts()[f"chat.{lacking}"] is not bool(lacks)


def test_trials_whose_answers_a_filter_held_back_say_nothing_of_the_server(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=24, temperature=1.0, n=2, logprobs=1, stop=(" the",))
    request = ChatRequest(messages=(Message("user", "q"),), params=params, seed=3, schema={"type": "object"})
    told: list[str] = []
    with hostile(filters=QUESTION.content) as server, AnswerStore(tmp_path / "answers") as store:
        asked = Client(endpoint(server.url), store, run="r", tell=lambda name, message: told.append(message))
        with asked:
            found = next(iter(asked.ask([request])))
            facts = asked.facts()
    assert len(found.choices) == 2 and all(choice.logprobs for choice in found.choices)
    assert [message for message in told if "withheld the answers to the test requests" not in message] == []
    assert [name for name in ("n", "logprobs", "seed", "stop", "schema") if facts[f"chat.{name}"] is not None] == []
    assert sum("it is unknown" in message for message in told) == 5


def test_stop_strings_are_cut_where_they_are_dropped(tmp_path: Path) -> None:
    asked_for = chats(20, stop=(" the", " a"), max_tokens=30)
    results = []
    for lacks in ([], ["stop"]):
        with hostile(lacks=lacks) as server, client(tmp_path / str(lacks), endpoint(server.url), alarms := []) as asked:
            found = list(asked.ask(asked_for))
            results.append([(each.text, each.choices[0].finish) for each in found])
        assert alarms == (["endpoint_stop"] if lacks else [])
    assert results[0] == results[1]
    assert {finish for _, finish in results[0]} >= {"stop_string"}


def test_what_a_server_refuses_and_nobody_must_have_is_left_out(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=24, temperature=1.0, n=2, stop=(" the", " a"))
    request = ChatRequest(messages=(Message("user", "q"),), params=params, seed=3, schema={"type": "object"})
    refuses = ["schema", "seed", "stop", "n"]
    with hostile(refuses=refuses) as server, client(tmp_path, endpoint(server.url), alarms := []) as asked:
        found = next(iter(asked.ask([request])))
    assert len(found.choices) == 2 and not any(" the" in choice.text for choice in found.choices)
    assert sorted(alarms) == ["endpoint_n", "endpoint_schema", "endpoint_seed", "endpoint_stop"]


@pytest.mark.parametrize(
    ("lacking", "said"), [("logprobs", "returns no log-probabilities"), ("ids", "does not answer token ids")]
)
def test_what_cannot_be_done_without_is_refused(tmp_path: Path, lacking: str, said: str) -> None:
    request = CompletionRequest(prompt=(1, 2), params=SamplingParams(logprobs=1, max_tokens=4))
    with (
        hostile(speaks="vllm", lacks=[lacking]) as server,
        client(tmp_path, endpoint(server.url)) as asked,
        pytest.raises(InputError, match=f"model teacher: .*{said}"),
    ):
        list(asked.ask([request]))


def test_a_scorer_that_answers_with_probabilities_is_refused(tmp_path: Path) -> None:
    with (
        hostile(speaks="vllm", probabilities=True) as server,
        client(tmp_path, endpoint(server.url)) as asked,
        pytest.raises(InputError, match="probabilities, but raw scores are needed"),
    ):
        list(asked.ask([ScoreRequest(items=("a",))]))


def test_scores_that_a_server_has_rounded_sound_an_alarm(tmp_path: Path) -> None:
    asked_for = [ScoreRequest(items=(f"text {i}", f"other {i}")) for i in range(16)]
    for rounded in (False, True):
        with (
            hostile(speaks="sglang", rounded=rounded) as server,
            client(tmp_path / str(rounded), endpoint(server.url), alarms := []) as asked,
        ):
            assert len(list(asked.ask(asked_for))) == 16
        assert alarms == (["rounded_scores"] if rounded else [])


def test_a_server_that_cannot_be_tried_ends_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.001)
    with (
        hostile(always="500") as server,
        client(tmp_path, endpoint(server.url)) as asked,
        pytest.raises(
            StageError, match=r"model teacher: the server could not be tested \(n\): .*answers 500: out of luck"
        ),
    ):
        list(asked.ask(chats(100, n=2)))


def test_a_chance_mishap_in_a_trial_is_no_verdict(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.01)
    for number in range(4):
        settings: dict[str, Any] = {"faults": ["fewer", "drop", "500", "unended"], "rate": 0.5, "context": number}
        with hostile(**settings) as server, client(tmp_path / str(number), endpoint(server.url), alarms := []) as asked:
            found = list(asked.ask(chats(2, n=2, temperature=1.0, logprobs=1)))
        assert alarms == [] and [len(each.choices) for each in found] == [2, 2]


def test_a_context_length_is_learned(tmp_path: Path) -> None:
    with hostile(speaks="vllm", context=512) as server, client(tmp_path, endpoint(server.url)) as asked:
        texts(list(asked.ask(chats(1))))
        assert asked.facts()["context"] == 512 and asked.facts()["protocol"] == "vllm"


def test_scores_on_bfloat16_steps_are_noticed() -> None:
    exact = np.linspace(-3.0, 3.1, 20, dtype=np.float32)
    rounded = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert not on_bf16_steps(exact.tolist())
    assert on_bf16_steps(rounded.tolist())
    assert not on_bf16_steps([1.0, 2.0, 3.0, 0.5] * 20), "a scale of halves is no rounding"
