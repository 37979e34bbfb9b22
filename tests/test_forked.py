"""A forked process cannot be told from a started one: its inputs, how it ends, and when one is started instead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import psutil
import pytest
from tiny_run import togi, togi_plainly

READER = [sys.executable, "-m", "togi.recipe.shard_worker"]  # waits until its input closes


def reader(**more) -> "subprocess.Popen[str]":
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return forked.Popen(READER, text=True, **pipes, **more)


def started_from(process: "subprocess.Popen[str]") -> bool:
    """Whether it is a child of this process."""
    return process.pid in {child.pid for child in psutil.Process().children()}


def test_it_has_what_was_ordered(tmp_path: Path):
    with reader() as process:
        assert "Traceback" in process.communicate("{}\n")[1]  # not a valid shard
        assert process.returncode == 1
    with reader(cwd=tmp_path, env={**os.environ, "TOGI_HOME": "there"}, start_new_session=True) as process:
        found = psutil.Process(process.pid)
        wait_for(lambda: found.cmdline()[1:3] == READER[1:])
        assert found.cwd() == str(tmp_path) and os.getsid(process.pid) == process.pid != os.getsid(0)
        assert found.num_fds() <= 4 and found.num_threads() == 1 and not started_from(process)
        assert process.communicate() == ("", "") and process.returncode == 0


def wait_for(true) -> None:
    while not true():
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_it_and_that_is_told(number: int):
    with reader() as process:
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == -number


def test_it_is_started_where_a_fork_would_differ():
    for more in ({"env": {**os.environ, "HF_HOME": "there"}}, {"env": {**os.environ, "PYTHONPATH": "there"}}):
        with reader(**more) as process:
            assert started_from(process)
    with reader(preexec_fn=os.getpid) as process:
        assert started_from(process)
    with forked.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert started_from(process)


def test_both_ways_give_one_answer(tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text("name: tiny\nstages: {some: {type: selekt}}\n")
    for words in (("plan", str(tmp_path / "tiny.yaml")), ("list", "--json")):
        found, expected = (each(tmp_path, *words) for each in (togi, togi_plainly))
        assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
        assert found.stderr == expected.stderr
