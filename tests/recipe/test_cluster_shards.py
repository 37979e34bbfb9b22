"""Shards on a Ray cluster of two nodes: the same bytes as serial work, whatever dies midway."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import row_stage
from cluster import await_nodes, kill_node, two_nodes
from row_runs import REF, TOY, context, outcome, run
from tiny_run import environment, results, togi

import togi as togi_package
from togi.core.errors import InputError, WorkerDied
from togi.core.files import read_lines, read_object
from togi.recipe.cluster import cluster_work
from togi.recipe.local_cluster import LocalCluster
from togi.stages.data import rows
from togi.stages.data.rows import map_shards
from togi.stages.shards import SerialShards

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
    pytest.mark.filterwarnings("ignore"),
]

RECIPE = """\
name: rows
data:
  drafts: {path: drafts.jsonl}
  tests: {path: tests.jsonl}
stages:
  good: {type: curate, input: $drafts, method: rules, max_chars: 35}
  clean: {type: decontaminate, input: $drafts, against: $tests, kind: prompts}
"""
QUESTIONS = 30_000  # 8 shards


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def shards(cluster: LocalCluster, monkeypatch) -> Iterator[Any]:
    """Makes the executor of a context. Shards of the toy stage have two rows."""
    monkeypatch.setattr(rows, "SHARD_ROWS", 2)
    work = cluster_work()
    yield lambda made: importlib.import_module("togi.recipe.cluster_shards_work").RayShards("auto", made.cache, made)
    work.leave()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe, run serially in home/ next to it."""
    folder = tmp_path_factory.mktemp("rows")
    questions = [f"Why is {i} {'larger than' if i % 3 else 'is'} {i - 1}?" for i in range(QUESTIONS)]
    (folder / "drafts.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    (folder / "tests.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in questions[:3]))
    (folder / "rows.yaml").write_text(RECIPE)
    ended = togi(folder / "home", "run", str(folder / "rows.yaml"))
    assert ended.returncode == 0, ended.stderr
    return folder / "rows.yaml"


class Busy:
    """Occupies a processor."""

    def ready(self) -> bool:
        return True


def on_cluster(made: Any, shards: Any) -> None:
    made.shards = shards(made)
    run(made)


def stage(home: Path, kind: str = "curate") -> Path:
    (folder,) = (home / "store").glob(f"{kind}-*")
    return folder


@pytest.mark.parametrize("through", ["its address", "its server for clients"])
def test_a_run_on_two_nodes_ends_with_the_bytes_of_a_serial_one(cluster, recipe, tmp_path: Path, through: str) -> None:
    place = "auto" if through == "its address" else cluster.client
    ended = togi(tmp_path, "run", str(recipe), "--on", place)
    assert ended.returncode == 0, ended.stderr
    assert "cluster: nodes node-1, node-2, 2 processors" in ended.stderr and "WARNING" not in ended.stderr
    assert results(tmp_path) == results(recipe.parent / "home")
    done = [read_object(stage(tmp_path, kind) / "places.json")["shards"] for kind in ("curate", "decontaminate")]
    assert [sum(shards.values()) for shards in done] == [8, 8]
    assert sorted({node for shards in done for node in shards}) == ["node-1", "node-2"]
    assert not list((tmp_path / "store").glob(".seen*"))


def test_a_driver_killed_in_the_middle_goes_on_with_the_same_command(cluster, recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "togi", "run", str(recipe), "--on", "auto"]
    first = subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.DEVNULL)
    while not (units := list((tmp_path / "store").glob("curate-*/units/shard-*.json"))):
        assert first.poll() is None
        time.sleep(0.01)
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.kill()
    first.wait()
    assert len(units) < 8 and not (stage(tmp_path) / "DONE").exists()
    again = togi(tmp_path, *command[3:])
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == results(recipe.parent / "home")


def test_a_process_that_dies_costs_its_shard_only(shards, tmp_path: Path) -> None:
    texts = ["one", "two", "deadly once", "three", "wait", "four", "five"]
    on_cluster(made := context(tmp_path / "ray", texts, SerialShards()), shards)
    assert (made.folder / "killed-1").exists()
    serial = context(tmp_path / "serial", texts, SerialShards())
    (serial.folder / "killed-1").touch()  # otherwise this process would be killed
    run(serial)
    assert outcome(made) == outcome(serial)


def test_errors_of_shards_are_told_and_what_is_done_stays(shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage toy, shard 1: row 1 is bad"):
        on_cluster(context(tmp_path / "bad", ["one", "two", "three", "bad"], SerialShards()), shards)
    made = context(tmp_path / "deadly", ["one", "two", "three", "deadly"], SerialShards())
    with pytest.raises(WorkerDied, match="stage toy: the process that did shard 1 died 3 times"):
        on_cluster(made, shards)
    assert [line["unit"] for line in read_lines(made.folder / "journal.jsonl")] == ["shard-000000"]


def test_a_stage_says_that_it_waits_for_processors(shards, tmp_path: Path, monkeypatch) -> None:
    made = context(tmp_path, ["one", "two"], SerialShards())
    work = importlib.import_module("togi.recipe.cluster_shards_work")
    monkeypatch.setattr(work, "PATIENCE", 0.5)
    said: list[dict[str, Any]] = []
    made.control.send = said.append
    cluster_work().connect("auto")
    ray = importlib.import_module("ray")
    others = [ray.remote(num_cpus=1)(Busy).remote() for _ in range(2)]
    ray.get([other.ready.remote() for other in others])
    freeing = threading.Timer(2.0, lambda: [ray.kill(other) for other in others])
    freeing.start()
    on_cluster(made, shards)
    freeing.join()
    told = [event.get("message") for event in said]
    assert "waiting for shard 0: 0 of 2 processors of the cluster are free" in told
    assert made.counts == {"in": 2, "out": 1}


def test_a_node_that_does_not_see_the_store_is_told(shards, tmp_path: Path) -> None:
    work = cluster_work()
    work.connect("auto")
    seen_here_alone = os.open(tmp_path, os.O_RDONLY)  # a path that means something else in another process
    try:
        with pytest.raises(InputError, match=r"nodes node-1, node-2 of the cluster cannot see /proc/self/fd/"):
            work.examine(Path(f"/proc/self/fd/{seen_here_alone}/store"))
    finally:
        os.close(seen_here_alone)
    assert work.examine(tmp_path) == "cluster: nodes node-1, node-2, 2 processors"


def test_a_node_killed_in_the_middle_costs_its_shards_only(cluster, shards, tmp_path: Path) -> None:
    texts = ["wait" if i % 2 else f"text {i}" for i in range(24)]
    made = context(tmp_path / "ray", texts, SerialShards())
    made.shards = shards(made)
    with made.writer("documents") as writer:
        for number, kept in enumerate(map_shards(TOY, row_stage.Toy(folder=str(made.folder)), made, REF, "documents")):
            writer.write(kept)
            if number == 2:
                kill_node(cluster, "node-2")
    made.finish()
    run(serial := context(tmp_path / "serial", texts, SerialShards()))
    assert outcome(made) == outcome(serial)
    done = read_object(made.folder / "places.json")["shards"]
    assert sum(done.values()) == 12 and done["node-1"] > done["node-2"]


def test_a_node_of_another_togi_is_told(cluster, recipe: Path, tmp_path: Path, monkeypatch) -> None:
    other = shutil.copytree(Path(togi_package.__file__).parent, tmp_path / "togi")
    with (other / "__init__.py").open("a") as file:
        file.write("# one line more\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        cluster.add("--address", cluster.address)
    await_nodes(2)
    ended = togi(tmp_path / "home", "run", str(recipe), "--on", "auto")
    assert ended.returncode == 3 and "node node-3: togi's code " in ended.stderr, ended.stderr
    assert "install the same everywhere" in " ".join(ended.stderr.split())
    assert not list((tmp_path / "home" / "store").glob("curate-*/units/*"))
