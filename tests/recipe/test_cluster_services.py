"""Services of a run on a Ray cluster: started on a node, called at its address, reported if dead, never left behind."""

import importlib
import importlib.util
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import two_nodes
from places import TESTS
from tiny_run import QUESTIONS, tiny_model, togi

from togi.core.codec import read_records
from togi.core.errors import StageError
from togi.recipe.cluster import cluster_work
from togi.recipe.local_cluster import LocalCluster
from togi.recipe.services import Services, ServiceSpec
from togi.stages.base import RECORDS_FILE

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
    pytest.mark.filterwarnings("ignore"),
]
RECIPE = """\
name: served
models:
  here: {path: model, template: chatml}
  there: {path: model, template: chatml, serve: {engine: togi}, concurrency: 3}
data:
  questions: {path: questions.jsonl}
stages:
  own: {type: respond, prompts: $questions, models: [$here], max_tokens: 8, temperature: 0, truncated: keep}
  asked: {type: respond, prompts: $questions, models: [$there], max_tokens: 8, temperature: 0, truncated: keep}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with two_nodes(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def found(cluster: LocalCluster, tmp_path: Path) -> Iterator[tuple[Services, list[str]]]:
    """The toy service on the cluster, and the list of services reported dead."""
    work = importlib.import_module("togi.recipe.cluster_services_work")

    def start(spec: ServiceSpec, log: Path, check_stop: Any) -> Any:
        return work.on_cluster("auto", spec, log, check_stop)

    died: list[str] = []
    command = (sys.executable, str(TESTS / "toy_service.py"), "{port}", str(tmp_path))
    made = Services(
        [ServiceSpec(name="toy", command=command, stages=("one",), ready_seconds=120)], tmp_path, died.append, start
    )
    yield made, died
    made.close()
    assert not cluster_work().ray.is_initialized()


def processes(folder: Path) -> list[psutil.Process]:
    return [psutil.Process(int(number)) for number in (folder / "pids").read_text().split()]


def test_a_service_answers_at_its_node_and_is_gone_after_its_stage(found, tmp_path: Path) -> None:
    services, died = found
    services.before("one", lambda note: None, lambda: None)
    assert urllib.request.urlopen(services.urls("one")["toy"] + "/health").status == 200
    ended = processes(tmp_path)
    assert "raylet" in [parent.name() for parent in ended[0].parents()]
    services.after([])
    assert psutil.wait_procs(ended, timeout=30)[1] == [] and died == []


def test_a_service_that_dies_and_one_whose_place_is_lost_are_told(found, tmp_path: Path) -> None:
    services, died = found
    services.before("one", lambda note: None, lambda: None)
    request = urllib.request.Request(services.urls("one")["toy"] + "/die", method="POST")
    with pytest.raises(OSError):
        urllib.request.urlopen(request)
    while not died:
        time.sleep(0.05)
    assert "service toy ended with exit code 7" in (told := services.death("one") or "")
    assert "the last line of its log is: out of memory, says the toy" in told

    services.before("one", lambda note: None, lambda: None)
    ended = processes(tmp_path)
    actor = next(p for p in ended[0].parents() if p.name().startswith("ray::") or "default_worker" in str(p.cmdline()))
    actor.kill()
    while len(died) < 2:
        time.sleep(0.05)
    assert "service toy is gone with its node" in (services.death("one") or "")
    assert psutil.wait_procs(ended, timeout=30)[1] == []


def test_a_service_without_a_place_is_told_with_what_there_is(found, monkeypatch) -> None:
    work, cluster = importlib.import_module("togi.recipe.cluster_services_work"), cluster_work()
    monkeypatch.setattr(work, "nodes", lambda: [cluster.ClusterNode("a", "a", 1, 1)])  # a GPU that Ray does not offer
    services, _ = found
    spec = services.specs["toy"]
    services.specs["toy"] = ServiceSpec(name="toy", command=spec.command, stages=spec.stages, ready_seconds=2)
    with pytest.raises(StageError, match=r"service toy found no place on the cluster within 2 s: 0 of 0 GPUs are free"):
        services.before("one", lambda note: None, lambda: None)


def test_a_model_that_a_run_serves_on_the_cluster_answers_as_it_does_here(cluster, tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    (tmp_path / "served.yaml").write_text(RECIPE)
    ended = togi(tmp_path / "home", "run", str(tmp_path / "served.yaml"), "--on", "auto")
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "home" / "runs" / "served"
    found: list[list[Any]] = [read_records(folder / name / RECORDS_FILE)[1] for name in ("own", "asked")]
    own, asked = ([sample.completion.text for sample in samples] for samples in found)
    assert own == asked != []
    assert "is served at http://" in (folder / "service-there.log").read_text()
