"""What several processes need at once is made once. After a kill at any point it is whole, or made again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

MAKER = """
import sys, time
from pathlib import Path
from togi.core.files import install_fault
from togi.stages.context import Context, Control
from togi.stages.made_once import made_once

home, name, point = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if point:
    install_fault(point)
context = Context(name, home, home, 0, {}, Control(lambda event: print(event["message"], flush=True)))
folder = home / "tokens"

def read(tell):
    return (folder / "whole").read_text() if (folder / "whole").exists() else None

def make(new):
    with (home / "made.log").open("a") as log:
        log.write(name + " ")
    (new / "begun").touch()
    while not (home / "go").exists():
        time.sleep(0.02)
    (new / "whole").write_text(name)

print(made_once(context, folder, "the making", read, make))
"""


def start(home: Path, name: str, point: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MAKER, str(home), name, point]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_one_makes_it_and_the_other_waits_aloud_and_reads_it(tmp_path):
    first = start(tmp_path, "one")
    while not list(tmp_path.glob(".tokens.making/new/begun")):
        assert first.poll() is None
    second = start(tmp_path, "two")
    assert second.stdout is not None
    told = second.stdout.readline().strip()
    assert told == f"the making is being done by another run (pid {first.pid}); waiting"
    (tmp_path / "go").touch()
    answers = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    assert answers == ["one", "one"] and (tmp_path / "made.log").read_text() == "one "
    assert not (tmp_path / ".tokens.making").exists()


@pytest.mark.parametrize("point", ["before_sync:1", "before_rename:1", "after_rename:1"])
def test_killed_anywhere_it_is_whole_or_made_again(tmp_path, point):
    (tmp_path / "go").touch()
    killed = start(tmp_path, "one", point)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    answer = start(tmp_path, "two").communicate(timeout=60)[0].strip()
    assert answer == ("one" if point == "after_rename:1" else "two")
    assert not list(tmp_path.glob(".tokens.making/*/whole"))
