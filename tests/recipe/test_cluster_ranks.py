"""Ranks of a training stage on a Ray cluster of two nodes: the same bits as on one machine, and a clear message if a
rank, a node or the driver is killed midway."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from agents import TWO_RANKS
from cluster import await_nodes, kill_node, two_nodes
from tiny_run import command_of, environment, results, togi
from tiny_texts import write_texts

from togi.core.errors import InputError
from togi.recipe.cluster import RankNeeds, cluster_work
from togi.recipe.local_cluster import LocalCluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
    pytest.mark.filterwarnings("ignore"),
]

RUN = ("run", "--threads", "2", "--compute", "float32")
LONG = TWO_RANKS.replace("epochs: 8", "epochs: 40")
"""160 steps: a fast machine does 32 before a killed node is missed."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe, run by two processes of one machine in home/ next to it."""
    folder = tmp_path_factory.mktemp("two")
    ended = togi(folder / "home", *RUN, str(write_texts(folder, LONG)))
    assert ended.returncode == 0, ended.stderr
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def start(recipe: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "togi", *RUN, str(recipe), "--on", "auto"]
    return subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def after_steps(run: subprocess.Popen[str], home: Path, count: int) -> None:
    """Returns as soon as `count` steps are done."""
    while sum(path.read_bytes().count(b"\n") for path in home.glob("store/train.sft-*/metrics.jsonl")) < count:
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.005)


def rank(cluster: LocalCluster, number: int) -> psutil.Process:
    """The process of a rank, on its node."""
    below = [p for node in cluster.nodes if node.poll() is None for p in psutil.Process(node.pid).children(True)]
    (found,) = [p for p in below if command_of(p)[1:4] == ["-m", "togi.recipe.worker", str(number)]]
    return found


def said(run: subprocess.Popen[str]) -> str:
    """The output of a run that ends by itself."""
    return " ".join(run.communicate(timeout=240)[0].split())


def test_ranks_on_two_nodes_end_with_the_bits_of_one_machine(cluster: LocalCluster, recipe: Path, tmp_path) -> None:
    ended = togi(tmp_path, *RUN, str(recipe), "--on", cluster.client)
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == results(recipe.parent / "home")
    assert "ranks by node: node-1 1, node-2 1" in ended.stderr and "WARNING" not in ended.stderr


def test_a_cluster_without_room_says_so_before_work_begins(cluster: LocalCluster, recipe: Path, tmp_path) -> None:
    ended = togi(tmp_path, *RUN, str(recipe), "stages.taught.processes=3", "--on", "auto")
    text = " ".join(ended.stderr.split())
    assert ended.returncode == 3, text
    assert "stages.taught.processes: the cluster has no room for 3 ranks of 1 processor each, only for 2" in text
    assert "node-1 has 1 processor, node-2 has 1 processor" in text and "Traceback" not in text
    assert not list((tmp_path / "store").glob("*-*"))


def test_room_is_counted_by_processors_and_devices() -> None:
    work = cluster_work()
    big, small = work.ClusterNode("a", "big", 8, 2), work.ClusterNode("b", "small", 3, 4)
    assert work.refuse_without_room([big, small], RankNeeds("policy", 3, 2)) == {"CPU": 2, "GPU": 1}
    with pytest.raises(InputError, match=r"4 ranks of 2 processors each and one GPU each, only for 3 of them: big has"):
        work.refuse_without_room([big, small], RankNeeds("policy", 4, 2))
    plain = work.ClusterNode("c", "plain", 8, 0)
    assert work.refuse_without_room([plain], RankNeeds("policy", 4, 2)) == {"CPU": 2}


def test_what_is_killed_goes_on_and_ends_with_the_same_bits(cluster: LocalCluster, recipe: Path, tmp_path) -> None:
    run = start(recipe, tmp_path)
    after_steps(run, tmp_path, 3)
    rank(cluster, 1).kill()
    text = said(run)
    assert run.returncode == 5 and "the worker (rank 1 of 2, on node-" in text, text
    assert "was killed (SIGKILL)" in text and "run the same command again" in text

    run = start(recipe, tmp_path)
    after_steps(run, tmp_path, 8)
    ranks = [rank(cluster, number) for number in (0, 1)]
    run.kill()  # the driver
    run.communicate()
    assert psutil.wait_procs(ranks, timeout=60)[1] == []

    run = start(recipe, tmp_path)
    after_steps(run, tmp_path, 12)
    run.terminate()
    assert "stopped after step" in said(run) and run.returncode == 130

    run = start(recipe, tmp_path)
    after_steps(run, tmp_path, 16)
    kill_node(cluster, "node-2")
    text = said(run)
    assert run.returncode == 5 and "on node-2) is gone: its node died" in text and "Traceback" not in text, text

    await_nodes(1)  # the remaining node, as soon as the cluster has noticed
    cluster.add("--address", cluster.address)
    await_nodes(2)
    run = start(recipe, tmp_path)
    assert "ranks by node: node-1 1, node-3 1" in said(run) and run.returncode == 0
    assert results(tmp_path) == results(recipe.parent / "home")
