"""`batch: true`: the provider's batch endpoint, and batches that outlive the run that started them."""

import threading
import time
from pathlib import Path

import pytest
from client_asks import chats, client, endpoint, texts
from hostile import hostile

from togi.client import batches
from togi.client.answers import Failure
from togi.client.endpoint import Budget
from togi.core.errors import StageError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batches, "FIRST_POLL", 0.05)


def test_a_batch_gives_the_answers_of_single_requests(tmp_path: Path) -> None:
    with hostile(batch_seconds=0.2) as server:
        with client(tmp_path / "single", endpoint(server.url)) as asked:
            single = texts(list(asked.ask(chats(40))))
        with client(tmp_path / "batch", endpoint(server.url, batch=True)) as asked:
            assert texts(list(asked.ask(chats(40)))) == single
            spent = asked.spending()
            assert texts(list(asked.ask(chats(40)))) == single and asked.progress.stored == 40
        assert server.stats()["batches"] == 1
    assert spent.open.total == 0 and spent.done.output > 40


def stop_soon(seconds: float):
    """A `check` that stops the run after `seconds`."""
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise StageError("stop")

    return check


def test_a_batch_outlives_the_run_that_began_it(tmp_path: Path) -> None:
    with hostile(batch_seconds=1.5) as server:
        made = endpoint(server.url, batch=True)
        with client(tmp_path, made, check=stop_soon(0.8)) as asked:
            with pytest.raises(StageError, match="stop"):
                list(asked.ask(chats(30)))
            assert asked.spending().open.total > 0, "a batch under way is reserved"
        with client(tmp_path, made) as asked:
            other = chats(31)[30:]  # a resumed run may ask for something else first
            assert len(texts(list(asked.ask(other)))) == 1
            assert len(texts(list(asked.ask(chats(30))))) == 30
            assert asked.spending().open.total == 0
        assert server.stats()["batches"] == 2 and server.stats()["lines"] == 31


def test_a_batch_that_the_server_has_lost_is_paid_for_and_asked_again(tmp_path: Path, caplog) -> None:
    soon = stop_soon(0.8)
    with hostile(batch_seconds=30) as server, client(tmp_path, endpoint(server.url, batch=True), check=soon) as asked:
        with pytest.raises(StageError, match="stop"):
            list(asked.ask(chats(3)))
        lost = asked.spending().open
    with hostile() as server, client(tmp_path, endpoint(server.url, batch=True)) as asked:  # it knows no batch
        assert len(texts(list(asked.ask(chats(3))))) == 3
        spent = asked.spending()
        assert server.stats()["batches"] == 1
    assert spent.open.total == 0 and spent.done.total > lost.total > 0
    assert "the server no longer has /files/" in caplog.text and "sent again" in caplog.text


def test_a_batch_is_found_again_by_its_tag(tmp_path: Path, monkeypatch) -> None:
    """The run ends after the batch was created and before its id was stored."""
    note = batches.Batches.note_place

    async def lost(self, row):
        if row.batch:
            raise StageError("the power went")
        await note(self, row)

    with hostile(batch_seconds=0.1) as server:
        made = endpoint(server.url, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batches.Batches, "note_place", lost)
            with client(tmp_path, made) as asked, pytest.raises(StageError, match="the power went"):
                list(asked.ask(chats(10)))
        with client(tmp_path, made) as asked:
            assert len(texts(list(asked.ask(chats(10))))) == 10
        assert server.stats()["batches"] == 1


def test_what_expires_goes_into_another_batch(tmp_path: Path) -> None:
    with hostile(batch_share=0.5) as server, client(tmp_path, endpoint(server.url, batch=True)) as asked:
        found = list(asked.ask(chats(8)))
        assert server.stats()["lines"] == 8 + 4 + 2
    assert [type(each).__name__ for each in found] == ["Answer"] * 7 + ["Failure"]


def test_a_batch_keeps_to_the_budget(tmp_path: Path) -> None:
    cost = len("user") + len("question 0") + 8
    with hostile() as server:
        made = endpoint(server.url, batch=True, budget=Budget(tokens=10 * cost))
        with client(tmp_path, made) as asked:
            with pytest.raises(StageError, match="is spent"):
                list(asked.ask(chats(100)))
            assert asked.spending().tokens.total <= 10 * cost and asked.store.count() >= 10
    assert threading.active_count() < 5


def test_lines_of_wrong_types_cost_no_answer_and_their_words_can_be_written(tmp_path: Path) -> None:
    with hostile(batch_odd=True) as server, client(tmp_path / "all", endpoint(server.url, batch=True)) as asked:
        assert len(texts(list(asked.ask(chats(5))))) == 5
    with (
        hostile(batch_odd=True, batch_share=0.5) as server,
        client(tmp_path / "half", endpoint(server.url, batch=True)) as asked,
    ):
        found = list(asked.ask(chats(16)))
    failures = [each for each in found if isinstance(each, Failure)]
    assert failures and all(each.message.encode() for each in failures)
