"""kill -9 during thousands of requests: no stored answer is requested again, and lost answers still count as spent."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from client_answers import digest
from client_asks import RUN, chats, endpoint
from hostile import Hostile, hostile

from togi.client.accounts import Account
from togi.client.requests import request_key
from togi.client.store import AnswerStore
from togi.client.wire import Dialect

WORKER = Path(__file__).parents[1] / "client_worker.py"
FAULTS = ["drop", "half", "429", "500", "wrong-json", "fewer", "order"]
MODEL = endpoint().model


def start(server: Hostile, folder: Path, count: int, concurrency: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(WORKER.parent), *sys.path])
    command = [sys.executable, str(WORKER), server.url, str(folder), str(count), str(concurrency)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})


def server_names(count: int) -> list[str]:
    """The server's name for each request."""
    dialect = Dialect()
    calls = [dialect.call(request, MODEL) for request in chats(count, n=2)]
    return [digest(["/v1" + call.path, json.loads(json.dumps(call.body))]).hex()[:16] for call in calls]


def stored(folder: Path, count: int) -> list[bool]:
    """For each request, whether its answer is stored."""
    with AnswerStore(folder / "answers.sqlite") as store:
        return [store.get((request_key(request, MODEL, ""), 0)) is not None for request in chats(count, n=2)]


def wait_for(server: Hostile, wanted: int, worker: subprocess.Popen[bytes]) -> None:
    """Waits until the server has given `wanted` good answers."""
    end = time.monotonic() + 300
    while server.answered() < wanted:
        assert worker.poll() is None, "the worker ended before it was killed"
        assert time.monotonic() < end, "the worker is stuck"
        time.sleep(0.02)


def prove(tmp_path: Path, count: int, kills: int, concurrency: int) -> None:
    with hostile() as server:
        assert start(server, tmp_path / "quiet", count, concurrency).wait(600) == 0
    with hostile(faults=FAULTS, rate=0.3, delay=0.005) as server:
        folder, names, again = tmp_path / "killed", server_names(count), dict.fromkeys(server_names(count), 0)
        kept: list[bool] = [False] * count
        for kill in range(kills):
            worker = start(server, folder, count, concurrency)
            wait_for(server, (kill + 1) * count // (kills + 1), worker)
            worker.kill()
            worker.wait()
            time.sleep(0.3)  # lets requests under way arrive
            now, seen = stored(folder, count), server.stats()["seen"]
            assert [name for name, was in zip(names, kept, strict=True) if was and seen[name] != again[name]] == []
            assert all(is_now for was, is_now in zip(kept, now, strict=True) if was)
            assert server.answered() - sum(now) <= (kill + 1) * concurrency, "more was lost than was under way"
            kept, again = now, {name: seen.get(name, 0) for name in names}
        assert sum(kept) >= count // 2
        assert start(server, folder, count, concurrency).wait(600) == 0
        end = server.stats()
    assert [name for name, was in zip(names, kept, strict=True) if was and end["seen"][name] != again[name]] == []
    assert (folder / "answers.txt").read_bytes() == (tmp_path / "quiet" / "answers.txt").read_bytes()
    with AnswerStore(folder / "answers.sqlite") as store:
        assert store.count() == count
        spent = store.spending(Account(RUN, "teacher"))
    assert spent.tokens.total >= end["tokens"], "the server counted tokens that nobody was charged for"
    assert spent.open.total > 0, "what was lost stays charged"


def test_killed_three_times(tmp_path: Path) -> None:
    prove(tmp_path, count=600, kills=3, concurrency=16)


@pytest.mark.slow
def test_killed_ten_times_during_ten_thousand_requests(tmp_path: Path) -> None:
    prove(tmp_path, count=10_000, kills=10, concurrency=64)
