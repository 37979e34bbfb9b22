"""Failing ranks as the parent reports them: the cause, not its echo, and nobody is left waiting."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from places import TESTS

from togi.core.errors import Fault, WorkerDied
from togi.recipe import workers
from togi.recipe.workers import Workers

CRASHED = ["say", {"event": "crashed", "error": "KeyError: 'a'"}]
ECHO = ["say", {"event": "crashed", "error": "RuntimeError: [gloo/transport/tcp/pair.cc:5] Connection closed by peer"}]
DONE = ["say", {"event": "done"}]


def failed(message: str, kind: str = "StageError") -> list[Any]:
    return ["say", {"event": "failed", "kind": kind, "message": message}]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs one script per rank and returns the events; no process outlives it."""
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, str(TESTS / "fake_worker.py")))
    started: list[Workers] = []

    def make(*ranks: list[Any]) -> list[dict[str, Any]]:
        started.append(Workers(tmp_path / "worker.log", threads=4, size=len(ranks)))
        return list(started[-1].do({"name": "policy", "ranks": ranks}))

    make.started = started  # type: ignore[attr-defined]
    start = time.monotonic()
    yield make
    for each in started:
        each.close()
        assert all(worker.process.returncode is not None for worker in each.workers.values())
    assert time.monotonic() - start < 20


def test_rank_0_speaks_and_all_ranks_must_be_done(run):
    log = {"event": "log", "message": "a"}
    events = run([["say", log], DONE], [["wait", 0.5], DONE])
    assert [event["event"] for event in events] == ["log", "done"]


def test_a_rank_that_fails_ends_those_that_wait_for_it(run):
    (event,) = run([["wait", 60]], [failed("no such row")])
    assert event["message"] == "no such row (rank 1 of 2)" and event["kind"] == "StageError"


def test_what_all_ranks_say_is_told_once(run):
    (event,) = run([failed("the loss is nan")], [["wait", 0.3], failed("the loss is nan")])
    assert event["message"] == "the loss is nan"


def test_the_first_failure_is_the_cause(run):
    (event,) = run([["wait", 0.5], CRASHED, ["exit", 1]], [failed("the disk is full")])
    assert event["message"] == "the disk is full (rank 1 of 2)"


def test_a_killed_rank_is_named_whatever_the_others_say_first(run):
    with pytest.raises(WorkerDied, match=r"the worker \(rank 1 of 3\) was killed \(SIGKILL\)"):
        run([CRASHED, ["exit", 1]], [["wait", 0.3], ["killed"]], [["wait", 60]])


def test_a_rank_that_crashes_is_named_with_what_it_raised_and_its_log(run, tmp_path):
    """It is not described by the last line of its log, which any library may have written."""
    with pytest.raises(Fault, match=r"rank 1 of 2\) stopped because of a bug in togi: KeyError: 'a'. The .*-rank1.log"):
        run([["wait", 0.5], CRASHED, ["exit", 1]], [CRASHED, ["exit", 3]])
    assert "Connection closed" in (tmp_path / "worker-rank1.log").read_text()


def test_a_rank_that_ends_itself_without_a_word_is_the_cause(run):
    with pytest.raises(WorkerDied, match=r"rank 1 of 2\) ended with exit code 0, without a message; the last line"):
        run([["wait", 0.2], CRASHED, ["exit", 1]], [["exit", 0]])


def test_a_rank_whose_end_shows_late_is_the_cause_all_the_same(run):
    """For example a rank on another machine: the others lose contact before it is known to be gone."""
    with pytest.raises(WorkerDied, match=r"the worker \(rank 1 of 2\) was killed \(SIGKILL\)"):
        run([ECHO, ["exit", 1]], [["wait", workers.SIGNS + 1], ["killed"]])


def test_a_rank_that_says_why_is_the_cause_though_others_missed_it_first(run):
    (event,) = run([ECHO, ["exit", 1]], [["wait", 0.5], failed("the disk is full")])
    assert event["message"] == "the disk is full (rank 1 of 2)"


def test_ranks_that_only_miss_each_other_are_no_fault(run):
    with pytest.raises(WorkerDied, match=r"rank 0 of 2\) lost another rank, which left no message: .*onnection closed"):
        run([ECHO, ["exit", 1]], [["wait", 0.3], ECHO, ["exit", 1]])


def test_what_is_no_event_goes_to_the_log(run, tmp_path):
    stray = "Loading...\n[1, 2]\n" + '{"event": 3}\n' + "\xff\x00\n" + 5000 * "[" + "\n"
    events = run([["print", stray], DONE])
    assert [event["event"] for event in events] == ["done"]
    log = (tmp_path / "worker.log").read_text()
    assert "Loading...\n[1, 2]\n" in log and "\\xff\x00" in log


def test_a_long_message_arrives_whole(run):
    (event,) = run([failed(300_000 * "long ")])
    assert len(event["message"]) == 1_500_000


def test_a_worker_that_died_is_missed_even_while_its_child_holds_its_output(run):
    begun = time.monotonic()
    with pytest.raises(WorkerDied, match="was killed"):
        run([["fork", 12], ["killed"]])
    assert time.monotonic() - begun < 10
    os.killpg(run.started[-1].workers[0].process.pid, signal.SIGKILL)  # the child, so that nothing outlives the test


def test_a_stop_reaches_a_rank_that_was_halted(run):
    """After SIGSTOP a rank would never see the stop, and the others would wait for it."""
    timer = threading.Timer(0.5, lambda: run.started[-1].stop())
    timer.start()
    begun = time.monotonic()
    (event,) = run([["stopped"]], [["halted"], ["stopped"]])
    assert event["kind"] == "Interrupted" and time.monotonic() - begun < 30
    timer.join()


def test_ranks_that_stop_are_waited_for(run):
    stopped = failed("stopped after step 3", "Interrupted")
    (event,) = run([stopped], [["wait", workers.SIGNS + 1], stopped])
    assert event["kind"] == "Interrupted" and event["message"] == "stopped after step 3"


def test_one_process_alone_has_no_rank_in_its_messages(run):
    with pytest.raises(WorkerDied, match=r"stage policy: the worker was killed"):
        run([["killed"]])
    (event,) = run([failed("no")])
    assert event["message"] == "no"


def test_a_worker_has_the_threads_that_are_recorded_whatever_the_environment_says(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run([["threads"], DONE])[0]["message"] == "4"


def test_a_signal_that_wakes_nobody_is_attended_to(run):
    """For example one that comes just before the parent sleeps: it is recorded, but does not interrupt the sleep."""
    attended = []
    before = signal.signal(signal.SIGINT, lambda *_: attended.append(time.monotonic()))
    start = time.monotonic()
    threading.Timer(0.3, _thread.interrupt_main).start()
    try:
        run([["wait", 4], DONE])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(attended) == 1
    assert attended[0] - start < 3


def test_code_that_leaves_or_reads_standard_input_does_not_cut_the_worker_off():
    """`exit()` closes sys.stdin before it raises SystemExit."""
    code = (
        "import sys\nfrom togi.recipe.worker import take_input\norders = take_input()\n"
        "first, read = orders.readline(), sys.stdin.read()\n"
        "try:\n    exit()\nexcept SystemExit:\n    print([first, read, orders.readline()])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], input="one\ntwo\n", capture_output=True, text=True, check=True)
    assert ended.stdout == "['one\\n', '', 'two\\n']\n"
