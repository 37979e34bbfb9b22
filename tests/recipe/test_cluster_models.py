"""Shards that local models compute, on a Ray cluster of two nodes: the same bytes as serial work."""

import importlib
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import await_nodes, kill_node, two_nodes
from model_runs import context, run, write_inputs, write_scorer
from tiny_run import QUESTIONS, command_of, results, tiny_model, togi

from togi.core.errors import InputError
from togi.core.files import read_object
from togi.core.settings import NamedScorerRef
from togi.core.sources import ModelSource
from togi.recipe.cluster import cluster_work
from togi.recipe.local_cluster import LocalCluster
from togi.stages.context import Context, Resolved
from togi.stages.shards import SerialShards

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
    pytest.mark.filterwarnings("ignore"),
]

RECIPE = """\
name: answers
models:
  base: {path: model, template: chatml}
  rm: {path: rm, kind: reward}
data: {questions: {path: questions.jsonl}}
stages:
  answers:
    type: respond
    prompts: $questions
    models: [$base]
    samples: 2
    temperature: 1.0
    max_tokens: 12
    truncated: keep
    batch_prompts: 1
  graded: {type: score, samples: $answers, scorer: $rm, batch_samples: 2}
"""

CURATED = """\
name: curated
models: {judge: {path: judge, template: chatml}}
data: {questions: {path: questions.jsonl}}
stages:
  good: {type: curate, input: $questions, model: $judge, batch_prompts: 2, rewrite: true, max_tokens: 3, workers: 2}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def shards(cluster: LocalCluster) -> Iterator[Callable[[Context], Any]]:
    """Makes the executor of a context."""
    work = importlib.import_module("togi.recipe.cluster_models_work")
    yield lambda made: work.RayModels("auto", made.cache, made)
    cluster_work().leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_inputs(made)
    return made


def on_cluster(folder: Path, kind: str, name: str, shards: Any) -> Context:
    made = context(folder, kind, name, SerialShards())
    made.shards = shards(made)
    return made


def after(made: Context, units: int, do: Callable[[], None]) -> None:
    """Does something when the stage has finished some units."""
    seen: list[Any] = []

    def send(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            seen.append(event)
            if len(seen) == units:
                do()

    made.control.send = send


def test_both_nodes_answer_and_score_and_the_bytes_are_those_of_a_serial_run(cluster, tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    write_scorer(tmp_path / "rm")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    recipe = tmp_path / "answers.yaml"
    recipe.write_text(RECIPE)
    serial = togi(tmp_path / "serial", "run", str(recipe))
    assert serial.returncode == 0, serial.stderr
    nodes: Counter[str] = Counter()  # of all four stages: one node can do the few shards of one stage alone
    for place in ("auto", cluster.client):
        home = tmp_path / place.partition(":")[0]
        ended = togi(home, "run", str(recipe), "--on", place)
        assert ended.returncode == 0, ended.stderr
        assert results(home) == results(tmp_path / "serial")
        for kind in ("respond", "score"):
            (stage,) = (home / "store").glob(f"{kind}-*")
            done = read_object(stage / "places.json")["shards"]
            assert sum(done.values()) == 8
            nodes.update(done)
    assert sorted(nodes) == ["node-1", "node-2"]


@pytest.mark.parametrize(("kind", "units"), [("label", 5), ("label-logprobs", 5), ("synthesize-rewrite", 6)])
def test_what_a_local_model_judges_or_writes_has_the_bytes_of_a_serial_run(shards, folder: Path, kind, units) -> None:
    made = on_cluster(folder, kind, "spread", shards)
    assert run(made, kind) == run(context(folder, kind, "serial", SerialShards()), kind)
    assert sum(read_object(made.folder / "places.json")["shards"].values()) == units


def test_rules_and_both_phases_of_a_judge_are_done_on_the_cluster(cluster, folder: Path, tmp_path: Path) -> None:
    recipe = folder / "curated.yaml"
    recipe.write_text(CURATED)
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    for place, more in (("serial", ()), ("cluster", ("--on", "auto"))):
        ended = togi(tmp_path / place, "run", str(recipe), *more)
        assert ended.returncode == 0, ended.stderr
    assert results(tmp_path / "cluster") == results(tmp_path / "serial")
    (stage,) = (tmp_path / "cluster" / "store").glob("curate-*")
    assert len([path for path in (stage / "units").iterdir() if path.name.startswith(("judge", "rewrite"))]) > 4
    done = read_object(stage / "places.json")["shards"]
    assert sum(done.values()) == len(list((stage / "units").iterdir()))


def test_shards_without_room_are_told_with_what_to_do(shards, folder: Path) -> None:
    made = on_cluster(folder, "score", "wide", shards)
    made.threads = 2
    room = r"stage made: a shard needs 2 processors of one node, but node-1 has 1 processor, .*; lower --threads"
    with pytest.raises(InputError, match=room):
        run(made, "score")
    made = context(folder, "score", "card", SerialShards(), device="cuda")
    made.shards = shards(made)
    with pytest.raises(InputError, match="its model has `device: cuda`, but no node of the cluster has a GPU"):
        run(made, "score")


def test_a_node_without_the_model_is_named(shards, folder: Path) -> None:
    seen_here_alone = os.open(folder, os.O_RDONLY)  # a path that means something else in another process
    try:
        made = on_cluster(folder, "score", "absent", shards)
        source = ModelSource(kind="path", name=f"/proc/self/fd/{seen_here_alone}/rm")
        made.inputs[NamedScorerRef("$rm")] = Resolved("scorer", source=source)
        with pytest.raises(InputError, match=r"stage made, shard 0, on node-[12]: \$rm: /proc/.*; every machine"):
            run(made, "score")
    finally:
        os.close(seen_here_alone)


def test_where_there_are_gpus_a_shard_takes_one(cluster, shards, folder: Path) -> None:
    """The GPU exists only in Ray's accounting: the model is computed on the processor."""
    cluster.add("--address", cluster.address, "--num-gpus", "1")
    await_nodes(3)
    made = on_cluster(folder, "score", "gpu", shards)
    assert run(made, "score") == run(context(folder, "score", "gpu-serial", SerialShards()), "score")
    assert read_object(made.folder / "places.json")["shards"] == {"node-3": 4}
    kill_node(cluster, "node-3")
    await_nodes(2)


def test_a_process_that_dies_costs_its_shards_only(cluster, shards, folder: Path) -> None:
    def kill() -> None:
        children = [each for node in cluster.nodes for each in psutil.Process(node.pid).children(recursive=True)]
        holders = [each for each in children if any("Holder" in part for part in command_of(each))]
        assert len(holders) == 2
        holders[0].kill()

    given = {"batch_prompts": 1}
    made = on_cluster(folder, "respond", "killed", shards)
    after(made, 2, kill)
    found = run(made, "respond", **given)
    assert found == run(context(folder, "respond", "killed-serial", SerialShards()), "respond", **given)
    assert sum(read_object(made.folder / "places.json")["shards"].values()) == 14


def test_a_node_that_dies_costs_its_shards_only(cluster, shards, folder: Path) -> None:
    given = {"batch_samples": 1}
    made = on_cluster(folder, "score", "lost", shards)
    after(made, 2, lambda: kill_node(cluster, "node-2"))
    found = run(made, "score", **given)
    assert found == run(context(folder, "score", "lost-serial", SerialShards()), "score", **given)
    done = read_object(made.folder / "places.json")["shards"]
    assert sum(done.values()) == 11 and done["node-1"] >= 1  # it did the first shards, or what node-2 left
