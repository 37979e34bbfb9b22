"""The client against a hostile server in a process of its own: order, store, retries, clean stops."""

import asyncio
import socket
import time
from pathlib import Path

import pytest
from client_asks import chats, client, endpoint, texts
from hostile import hostile

from togi.client.answers import Answer, Failure
from togi.client.connection import SILENT_SECONDS, Connection
from togi.client.endpoint import Budget, Price
from togi.client.requests import ChatRequest
from togi.core.errors import InputError, RecipeError, StageError
from togi.core.records import Message, SamplingParams

FAULTS = ["drop", "half", "half-chunk", "stream", "429", "429-date", "429-bare", "500", "wrong-json", "other-json",
          "fewer", "unended", "order"]  # fmt: skip


def test_answers_come_in_order_and_are_asked_for_once(tmp_path: Path) -> None:
    with hostile(delay=0.01) as server:
        with client(tmp_path, endpoint(server.url)) as asked:
            first = texts(list(asked.ask(chats(60))))
            again = texts(list(asked.ask(chats(60))))
        found = server.stats()
    assert first == again and len(set(first)) > 50
    assert set(found["seen"].values()) == {1} and len(found["seen"]) == 60
    assert 2 <= found["most"] <= 8  # never more than `concurrency`


def test_stored_answers_need_neither_server_nor_key(tmp_path: Path) -> None:
    with (
        hostile() as server,
        client(tmp_path, endpoint(server.url)) as asked,
    ):
        first = texts(list(asked.ask(chats(5))))
    gone = endpoint("http://127.0.0.1:9/v1", key_env="TOGI_NO_SUCH_KEY", budget=Budget(tokens=1))
    with client(tmp_path, gone) as asked:
        assert texts(list(asked.ask(chats(5)))) == first
        assert asked.progress.stored == 5
        with pytest.raises(RecipeError, match="TOGI_NO_SUCH_KEY is not set"):
            list(asked.ask(chats(6)))


def test_an_answer_belongs_to_a_model_at_a_revision_and_to_an_index(tmp_path: Path) -> None:
    request = chats(1)[0]
    second = ChatRequest(messages=request.messages, params=request.params, index=1)
    with hostile() as server:
        for made, count in ((endpoint(server.url), 1), (endpoint(server.url, revision="2"), 2)):
            with client(tmp_path, made) as asked:
                texts(list(asked.ask([request, request, request])))
            assert sum(server.stats()["seen"].values()) == count
        with client(tmp_path, endpoint(server.url + "/")) as asked:
            texts(list(asked.ask([request, second])))
        assert sum(server.stats()["seen"].values()) == 3


def test_whatever_a_server_does_the_answers_are_those_of_a_quiet_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.01)
    monkeypatch.setattr("togi.client.pacing.FIRST_PAUSE", 0.02)
    asked_for = chats(150, n=2)
    with hostile() as server, client(tmp_path / "quiet", endpoint(server.url)) as asked:
        quiet = [found.choices for found in asked.ask(asked_for)]
    with hostile(faults=FAULTS, rate=0.4) as server, client(tmp_path / "loud", endpoint(server.url)) as asked:
        loud = [found.choices for found in asked.ask(asked_for)]
        counted = server.stats()
    assert loud == quiet
    assert {fault for fault in FAULTS if counted.get(fault)} == set(FAULTS)
    assert max(counted["good"].values()) == 1


@pytest.mark.parametrize("fault", ["500", "wrong-json", "drop", "half", "unended"])
def test_tries_are_bounded_and_a_failure_is_no_answer(tmp_path: Path, fault: str, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.001)
    with hostile(always=fault) as server, client(tmp_path, endpoint(server.url)) as asked:
        found = list(asked.ask(chats(2)))
        assert [type(each) for each in found] == [Failure, Failure]
        assert asked.store.count() == 0
        assert set(server.stats()["seen"].values()) == {6}


def test_a_slow_drip_is_cut_by_the_deadline(tmp_path: Path) -> None:
    began = time.monotonic()
    with hostile(always="drip") as server, client(tmp_path, endpoint(server.url, deadline=1.0)) as asked:
        found = list(asked.ask(chats(2)))
    assert [each.reason for each in found] == ["deadline", "deadline"]
    assert time.monotonic() - began < 10


def test_a_request_that_is_too_long_fails_alone_and_at_once(tmp_path: Path) -> None:
    with hostile(always="400") as server, client(tmp_path, endpoint(server.url)) as asked:
        found = next(iter(asked.ask(chats(1))))
        assert found.reason == "too_long" and "maximum context length" in found.message
        assert server.stats()["requests"] == 2  # the list of models, and this one


def test_requests_that_all_fail_end_the_run(tmp_path: Path) -> None:
    with hostile(always="400") as server, client(tmp_path, endpoint(server.url)) as asked:
        with pytest.raises(StageError, match="32 requests in a row failed"):
            list(asked.ask(chats(200)))
        assert server.stats()["requests"] < 60


# --- what ends a run --------------------------------------------------------------------------------------------------


def test_a_sustained_429_ends_cleanly_and_keeps_what_is_done(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.exchange.PATIENCE", 1.0)
    with (
        hostile(busy_after=21) as server,
        client(tmp_path, endpoint(server.url)) as asked,
    ):
        with pytest.raises(StageError, match="too many requests") as error:
            list(asked.ask(chats(60)))
        assert error.value.exit_code == 4
        stored = asked.store.count()
    assert 10 <= stored <= 20
    with hostile() as server, client(tmp_path, endpoint(server.url)) as asked:
        assert len(texts(list(asked.ask(chats(60))))) == 60
        assert sum(server.stats()["seen"].values()) == 60 - stored


def test_a_429_that_asks_for_an_hour_ends_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        hostile(always="429", retry_after="3600") as server,
        client(tmp_path, endpoint(server.url)) as asked,
        pytest.raises(StageError, match="asks to wait 3600 s"),
    ):
        list(asked.ask(chats(3)))
    assert time.monotonic() - began < 10


def test_what_waits_for_its_turn_does_not_hold_up_the_end(tmp_path: Path) -> None:
    began = time.monotonic()
    with hostile(busy_after=5, retry_after="3600") as server:
        made = endpoint(server.url, concurrency=2, requests_per_minute=300)
        with client(tmp_path, made) as asked, pytest.raises(StageError, match="asks to wait 3600 s"):
            list(asked.ask(chats(200)))
    assert time.monotonic() - began < 20


def test_a_template_that_adds_to_prompts_makes_later_reservations_larger(tmp_path: Path) -> None:
    with hostile() as server, client(tmp_path, endpoint(server.url), counter=lambda: lambda request: 1) as asked:
        texts(list(asked.ask(chats(1))))
        before = asked.spending()
        texts(list(asked.ask(chats(60))))
        assert before.done.input > 1
        assert asked.exchange is not None
        assert asked.exchange.excess == max(found.usage.input for found in asked.ask(chats(60))) - 1


def test_a_key_in_a_url_is_refused_and_not_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.exchange.FIRST_PATIENCE", 0.1)
    made = endpoint("http://user:secret@127.0.0.1:9/v1")
    with client(tmp_path, made) as asked, pytest.raises(InputError, match="a URL must not contain a key") as error:
        list(asked.ask(chats(1)))
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.exchange.FIRST_PATIENCE", 0.5)
    with (
        client(tmp_path, endpoint("http://127.0.0.1:9/v1")) as asked,
        pytest.raises(InputError, match=r"model teacher: http://127\.0\.0\.1:9/v1/models: cannot be reached"),
    ):
        list(asked.ask(chats(3)))


def test_a_server_that_goes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.exchange.PATIENCE", 1.5)
    with hostile(delay=0.05) as server, client(tmp_path, endpoint(server.url)) as asked:
        results = asked.ask(chats(100))
        next(results)
        server.process.kill()
        with pytest.raises(StageError, match="no server has answered") as error:
            list(results)
        assert "continues from here" in str(error.value)
        assert asked.store.count() >= 1


def test_a_wrong_key(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "wrong")
    said = r"refuses the key .401: Incorrect API key provided.; check the key in TEACHER_KEY"
    with (
        hostile(key="right") as server,
        client(tmp_path, endpoint(server.url, key_env="TEACHER_KEY")) as asked,
        pytest.raises(InputError, match=said),
    ):
        list(asked.ask(chats(3)))
    monkeypatch.setenv("TEACHER_KEY", "right")
    with hostile(key="right") as server, client(tmp_path, endpoint(server.url, key_env="TEACHER_KEY")) as asked:
        texts(list(asked.ask(chats(3))))


@pytest.mark.parametrize(("speaks", "found"), [("vllm", "it serves 'm'"), ("openai", "does not exist")])
def test_a_model_that_is_not_served(tmp_path: Path, speaks: str, found: str) -> None:
    with (
        hostile(speaks=speaks) as server,
        client(tmp_path, endpoint(server.url, model="other")) as asked,
        pytest.raises(InputError, match=rf"does not serve 'other'.*{found}"),
    ):
        list(asked.ask(chats(3)))


def test_a_redirect_is_refused(tmp_path: Path) -> None:
    with (
        hostile(always="redirect") as server,
        client(tmp_path, endpoint(server.url)) as asked,
        pytest.raises(InputError, match=r"redirects to http://elsewhere\.example"),
    ):
        list(asked.ask(chats(3)))


def test_a_caller_that_stops_ends_what_is_under_way(tmp_path: Path) -> None:
    asked_times = []

    def check() -> None:
        asked_times.append(1)
        if len(asked_times) > 3:
            raise StageError("stop")

    began = time.monotonic()
    with (
        hostile(always="drip") as server,
        client(tmp_path, endpoint(server.url), check=check) as asked,
        pytest.raises(StageError, match="stop"),
    ):
        list(asked.ask(chats(20)))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("pasted", ["sk_live_51HxAbCdEf", "hf_QwErTyUiOpAsDf", "AKIAIOSFODNN7EXAMPLE"])
def test_a_key_in_place_of_the_name_of_its_variable_is_not_shown(tmp_path: Path, pasted: str) -> None:
    made = endpoint("http://user:secret@127.0.0.1:9/v1", key_env=pasted)
    with client(tmp_path, made) as asked, pytest.raises(RecipeError, match="not shown, because it may be") as error:
        list(asked.ask(chats(1)))
    assert pasted not in str(error.value) and "secret" not in str(error.value)


# --- the budget -------------------------------------------------------------------------------------------------------


def test_a_budget_is_never_passed_and_what_it_allows_is_done(tmp_path: Path) -> None:
    cost = len("user") + len("question 0") + 8
    with hostile() as server:
        made = endpoint(server.url, budget=Budget(tokens=10 * cost))
        with client(tmp_path, made) as asked:
            with pytest.raises(StageError, match="is spent") as error:
                list(asked.ask(chats(100)))
            spent, stored = asked.spending(), asked.store.count()
            assert error.value.exit_code == 4 and f"models.{made.name}.budget" in str(error.value)
        assert spent.open.total == 0 and spent.done.total == server.stats()["tokens"] <= 10 * cost
        assert spent.done.total > 9 * cost - cost and stored >= 10
        with client(tmp_path, made) as asked, pytest.raises(StageError, match="is spent"):
            list(asked.ask(chats(100)))
        assert len(server.stats()["seen"]) == stored


def test_a_budget_holds_where_templates_add_to_prompts(tmp_path: Path) -> None:
    """Prompts are estimated at 1 token but cost 11: only the first request is sent without knowing this."""
    with (
        hostile(delay=0.02) as server,
        client(tmp_path, endpoint(server.url, budget=Budget(tokens=100)), counter=lambda: lambda request: 1) as asked,
    ):
        with pytest.raises(StageError, match="is spent"):
            list(asked.ask(chats(100)))
        assert asked.spending().done.total == server.stats()["tokens"] <= 100
        assert asked.store.count() >= 5


def test_a_budget_smaller_than_one_request(tmp_path: Path) -> None:
    with hostile() as server:
        for budget in (Budget(tokens=10), Budget(money=1e-9)):
            made = endpoint(server.url, budget=budget, price=Price(input=1.0, output=2.0))
            with client(tmp_path, made) as asked, pytest.raises(StageError, match="is less than one request"):
                list(asked.ask(chats(3)))
        assert server.stats()["seen"] == {}


def test_lost_requests_stay_charged(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("togi.client.pacing.FIRST_WAIT", 0.001)
    with hostile(always="drop") as server, client(tmp_path, endpoint(server.url)) as asked:
        list(asked.ask(chats(2)))
        spent = asked.spending()
    assert spent.calls == 12 and spent.open.output == 12 * 8 and spent.done.total == 0


def test_refused_requests_are_not_charged(tmp_path: Path) -> None:
    with hostile(always="400") as server, client(tmp_path, endpoint(server.url)) as asked:
        list(asked.ask(chats(2)))
        assert asked.spending().tokens.total == 0


# --- replicas, rates --------------------------------------------------------------------------------------------------


def test_replicas_share_the_work_and_a_dead_one_is_left_out(tmp_path: Path) -> None:
    with hostile(delay=0.02) as one, hostile(delay=0.02) as two:
        made = endpoint(one.url, two.url, "http://127.0.0.1:9/v1")
        with client(tmp_path, made) as asked:
            texts(list(asked.ask(chats(60))))
        counts = [len(server.stats()["seen"]) for server in (one, two)]
    assert sum(counts) == 60 and min(counts) >= 20


def test_a_replica_that_dies_costs_its_requests_only(tmp_path: Path) -> None:
    with (
        hostile(delay=0.02) as one,
        hostile(delay=0.02) as two,
        client(tmp_path, endpoint(one.url, two.url)) as asked,
    ):
        results = asked.ask(chats(100))
        found = [next(results)]
        one.process.kill()
        found += results
    assert len(texts(found)) == 100


def test_requests_per_minute(tmp_path: Path) -> None:
    began = time.monotonic()
    with hostile() as server, client(tmp_path, endpoint(server.url, requests_per_minute=600)) as asked:
        texts(list(asked.ask(chats(10))))
    assert time.monotonic() - began >= 0.9


def test_seeds_and_settings_reach_the_server_and_tell_answers_apart(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=24, temperature=1.0)
    asked_for = [ChatRequest(messages=(Message("user", "q"),), params=params, seed=seed) for seed in (1, 2, 3)]
    with hostile() as server, client(tmp_path, endpoint(server.url)) as asked:
        found = list(asked.ask(asked_for))
    assert len(set(texts(found))) == 3
    assert all(isinstance(each, Answer) for each in found)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone ends connections early")
def test_the_kernel_ends_a_connection_whose_other_side_is_gone() -> None:
    async def option() -> int:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            transport, _ = await loop.create_connection(Connection, *server.getsockname())
            return transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert asyncio.run(option()) == SILENT_SECONDS * 1000
