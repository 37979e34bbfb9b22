"""Shards in processes: the same bytes as serial work, and the handling of killed processes."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import row_stage
from row_runs import REF, TOY, context, outcome, run
from tiny_run import results, togi

from togi.core.errors import InputError, Interrupted, StageError, WorkerDied
from togi.core.files import read_lines
from togi.core.records import Drop
from togi.recipe.pool import PoolShards, start_process
from togi.stages.base import RECORDS_FILE
from togi.stages.data import rows
from togi.stages.data.rows import map_shards
from togi.stages.shards import SerialShards


def start() -> "subprocess.Popen[str]":
    """A process of the pool that can import the toy stage."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(row_stage.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return start_process()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(rows, "SHARD_ROWS", 2)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


@pytest.fixture
def pool():
    made = PoolShards(2, start)
    yield made
    made.close()


def test_a_pool_makes_the_bytes_of_serial_work(tmp_path: Path, pool: PoolShards) -> None:
    texts = [f"text {i}" for i in range(11)]
    texts[0] = "wait"  # the first shard finishes last
    made = [context(tmp_path / name, texts, executor) for name, executor in (("a", SerialShards()), ("b", pool))]
    for each in made:
        run(each)
    assert outcome(made[0]) == outcome(made[1])
    assert made[1].counts == {"in": 11, "out": 5} and made[1].drops[0] == Drop(id="d0", stage="toy", reason="even")
    assert [line["unit"] for line in read_lines(made[1].folder / "journal.jsonl")] == [
        f"shard-{i:06d}" for i in range(6)
    ]


def test_a_killed_process_is_replaced_and_its_shard_done_again(tmp_path: Path, pool: PoolShards) -> None:
    texts = ["one", "two", "deadly once", "three", "four"]
    run(made := context(tmp_path / "pool", texts, pool))
    assert (made.folder / "killed-1").exists()
    serial = context(tmp_path / "serial", texts, SerialShards())
    (serial.folder / "killed-1").touch()  # otherwise this process would be killed
    run(serial)
    assert outcome(made) == outcome(serial)


def test_a_shard_that_kills_every_process_ends_the_stage_and_keeps_the_others(tmp_path: Path, pool: PoolShards) -> None:
    made = context(tmp_path, ["one", "two", "three", "deadly"], pool)
    with pytest.raises(WorkerDied, match=r"stage toy: the process that did shard 1 was killed \(signal 9\)"):
        run(made)
    assert [line["unit"] for line in read_lines(made.folder / "journal.jsonl")] == ["shard-000000"]
    assert not (made.folder / RECORDS_FILE).exists()


def test_an_error_of_a_shard_is_the_stages_own(tmp_path: Path, pool: PoolShards) -> None:
    with pytest.raises(InputError, match="stage toy, shard 1: row 1 is bad"):
        run(context(tmp_path, ["one", "two", "three", "bad"], pool))
    with pytest.raises(StageError, match=r"^stage toy, shard 1: there is not enough memory"):
        run(context(tmp_path / "large", ["one", "two", "three", "large"], pool))


def test_finished_shards_are_not_done_again(tmp_path: Path, monkeypatch) -> None:
    made = context(tmp_path, [f"text {i}" for i in range(6)], SerialShards())
    values = map_shards(TOY, row_stage.Toy(), made, REF, "documents")
    next(values)
    made.control.stop = True
    with pytest.raises(Interrupted):
        next(values)
    monkeypatch.setenv("SHARD_SAYS", "again")
    again = context(tmp_path, [f"text {i}" for i in range(6)], SerialShards())
    kept = [record.text for part in map_shards(TOY, row_stage.Toy(), again, REF, "documents") for record in part]
    assert kept == ["TEXT 1 ", "TEXT 3 again", "TEXT 5 again"]


def test_the_processes_end_with_the_pool_and_with_whoever_holds_their_input(tmp_path: Path) -> None:
    pool = PoolShards(2, start)
    run(context(tmp_path, ["one", "two", "three"], pool))
    started = pool.processes
    pool.close()
    assert len(started) == 2 and [each.returncode for each in started] == [-signal.SIGKILL] * 2
    with start() as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_a_run_with_a_pool_ends_with_the_bytes_of_one_without(tmp_path: Path) -> None:
    questions = [f"Why is the number {i} {'larger than' if i % 3 else 'is'} {i - 1}?" for i in range(4500)]
    (tmp_path / "drafts.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    recipe = "name: rows\ndata:\n  drafts: {path: drafts.jsonl}\nstages:\n"
    recipe += "  good: {type: curate, input: $drafts, method: rules, max_chars: 35}\n"
    (tmp_path / "rows.yaml").write_text(recipe)
    found = []
    for workers in (1, 2):
        home = tmp_path / f"home{workers}"
        ended = togi(home, "run", str(tmp_path / "rows.yaml"), f"stages.good.workers={workers}")
        assert ended.returncode == 0, ended.stderr
        (folder,) = (home / "store").glob("curate-*")
        assert len(list((folder / "units").glob("shard-*.json"))) == 2
        found.append(results(home))
    assert found[0] == found[1]
    kept, counts = found[0], json.loads(found[0][f"{folder.name}/summary.json"])["counts"]
    assert counts["in"] == 4500 and 0 < counts["out"] < 4500 and f"{folder.name}/drops.json" in kept
