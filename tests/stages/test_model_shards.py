"""Shards that a local model computes: the bytes of serial work, wherever they are done."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from model_runs import GIVEN, context, run, write_inputs

from togi.client.endpoint import Endpoint
from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, Interrupted, StageError
from togi.core.files import read_json, write_json
from togi.core.settings import NamedScorerRef, SamplesRef
from togi.model.card import CARD
from togi.recipe.executors import RowsAndModels
from togi.recipe.pool import PoolShards
from togi.stages.base import MODEL_FOLDER, RECORDS_FILE, output_path
from togi.stages.context import Context, Resolved
from togi.stages.model_shards import any_may_spread, is_spread
from togi.stages.shards import SerialShards, ShardTask, do_shard


class Elsewhere:
    """Does shards as another process would: tasks and values pass through JSON. Remembers which it did."""

    apart = True

    def __init__(self) -> None:
        self.done: list[int] = []

    def values(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        for task in tasks:
            self.done.append(task.number)
            yield json.loads(json.dumps(self.value(ShardTask(**json.loads(json.dumps(asdict(task)))))))

    def value(self, task: ShardTask) -> dict[str, Any]:
        return do_shard(task)


class OtherDevice(Elsewhere):
    """Computes its third shard on another device."""

    def value(self, task: ShardTask) -> dict[str, Any]:
        found = super().value(task)
        return {**found, "held": {**found["held"], "device": "cuda"}} if task.number == 2 else found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_inputs(made)
    return made


@pytest.fixture(scope="module")
def serial(folder: Path) -> dict[str, dict[str, bytes]]:
    return {kind: run(context(folder, kind, "serial", SerialShards()), kind) for kind in GIVEN}


def by_phase(found: dict[str, bytes]) -> list[int]:
    """The number of units of each phase of a stage, in order."""
    counts = Counter(name.rpartition("-")[0] for name in found if name.rpartition("-")[0])
    return [counts[phase] for phase in ("shard", "batch", "verdicts", "judge", "score", "verdict", "rewrite")]


def score(folder: Path, name: str, executor: Any = None, **source: Any) -> Context:
    """A stage whose reward model has a changed source."""
    made = context(folder, "score", name, executor or Elsewhere())
    target = made.inputs[NamedScorerRef("$rm")]
    assert target.source is not None
    made.inputs[NamedScorerRef("$rm")] = replace(target, source=replace(target.source, **source))
    return made


@pytest.mark.parametrize("kind", list(GIVEN))
def test_shards_make_the_bytes_of_serial_work(folder, serial, kind):
    executor = Elsewhere()
    made = context(folder, kind, "elsewhere", executor)
    assert run(made, kind) == serial[kind]
    assert executor.done == [number for count in by_phase(serial[kind]) for number in range(count)]
    assert [path.name for path in made.folder.iterdir() if "asked" in path.name] == []


@pytest.mark.parametrize(("models", "done"), [(Elsewhere(), [0, 1, 2, 3, 4, 0, 1]), (SerialShards(), None)])
def test_shards_of_rows_and_of_models_may_be_done_in_different_places(folder, serial, models, done):
    rows = Elsewhere()
    made = context(folder, "curate", f"both-{done is None}", RowsAndModels(rows, models))
    assert run(made, "curate") == serial["curate"]
    assert rows.done == [0] and (done is None or models.done == done)


def test_processes_make_the_bytes_of_serial_work(folder, serial):
    with closing(PoolShards(2)) as pool:
        for kind in ("respond", "score", "label", "curate", "synthesize-qa", "synthesize-answers"):
            assert run(context(folder, kind, "pool", pool), kind) == serial[kind]
        assert len(pool.processes) == 2


def test_the_threads_are_those_of_the_run_wherever_a_shard_is_done(folder):
    with closing(PoolShards(1)) as pool:  # its process has one thread
        made = context(folder, "score", "threads", pool)
        made.threads = 2
        run(made, "score")
    assert read_json(made.folder / "numerics.json")["torch_threads"] == 2


@pytest.mark.parametrize("kind", list(GIVEN))
def test_what_was_finished_serially_is_not_done_again(folder, serial, kind):
    begun = context(folder, kind, "begun", SerialShards())

    def stop(event: dict[str, Any]) -> None:
        begun.control.stop = event["event"] == "progress"

    begun.control.send = stop
    with pytest.raises(Interrupted):
        run(begun, kind)
    executor = Elsewhere()
    assert run(context(folder, kind, "begun", executor), kind) == serial[kind]
    assert len(executor.done) == sum(by_phase(serial[kind])) - 1


def test_what_was_finished_elsewhere_is_not_done_again(folder, serial):
    executor = Elsewhere()
    begun = context(folder, "respond", "turned", executor)

    def stop(event: dict[str, Any]) -> None:
        begun.control.stop = begun.control.stop or (event["event"] == "progress" and event["done"] == 12)

    begun.control.send = stop
    with pytest.raises(Interrupted):
        run(begun, "respond")
    assert executor.done == [0, 1, 2]
    again = context(folder, "respond", "turned", SerialShards())
    assert run(again, "respond") == serial["respond"]


def test_samples_of_a_policy_are_cut_elsewhere_too(folder):
    found = []
    for name, executor in (("cut", SerialShards()), ("cut-elsewhere", Elsewhere())):
        made = context(folder, "score", name, executor)
        answers: Any = read_records(folder / "s" / RECORDS_FILE)[1]
        ended = [replace(each, completion=replace(each.completion, text=f"{each.text}<end>\n")) for each in answers]
        write_records(folder / name / "x" / output_path("samples", "samples"), "samples", ended)
        write_json(folder / name / "x" / MODEL_FOLDER / CARD, {"template": {"terminator": "<end>", "turn_starts": []}})
        made.inputs[SamplesRef("$x.samples")] = Resolved("samples", folder=folder / name / "x")
        found.append(run(made, "score", samples="$x.samples"))
        assert b"<end>" not in found[-1][RECORDS_FILE]
    assert found[0] == found[1]


def test_other_arithmetic_than_that_of_earlier_shards_ends_the_stage(folder):
    made = context(folder, "score", "mixed", OtherDevice())
    with pytest.raises(StageError, match=r"begun under other numerics \(device: cpu then, cuda now\)"):
        run(made, "score")
    assert len(list((made.folder / "units").iterdir())) == 2


def test_a_model_that_is_not_there_is_told_with_what_to_do(folder, tmp_path):
    class Bare(Elsewhere):
        """A machine without the model's files."""

        def value(self, task: ShardTask) -> dict[str, Any]:
            assert task.more is not None
            needs = task.more["model"]
            source = {**needs["source"], "name": str(tmp_path / "none")}
            return do_shard(replace(task, more={**task.more, "model": {**needs, "source": source}}))

    with pytest.raises(InputError, match=r"\$rm: .*none.*; every machine that does shards needs the models"):
        run(context(folder, "score", "bare", Bare()), "score")


def test_another_model_of_the_same_name_is_refused(folder, tmp_path):
    class Other(Elsewhere):
        """A machine whose folder of the same name has other files."""

        def value(self, task: ShardTask) -> dict[str, Any]:
            write_json(folder / "rm" / "config.json", {**read_json(folder / "rm" / "config.json"), "note": "other"})
            return do_shard(task)

    before = (folder / "rm" / "config.json").read_bytes()
    try:
        with pytest.raises(InputError, match="has other files or another version here than where the run runs"):
            run(score(folder, "other", Other(), licence="for a model that no process keeps yet"), "score")
    finally:
        (folder / "rm" / "config.json").write_bytes(before)


def test_models_on_servers_and_on_a_certain_card_stay_with_the_run(folder):
    ref = NamedScorerRef("$rm")
    for device, spread in (("", True), ("cpu", True), ("cuda", True), ("cuda:0", True), ("cuda:1", False)):
        made = score(folder, "place", device=device)
        assert (is_spread(made, ref), any_may_spread(made)) == (spread, spread)
    served = score(folder, "place")
    endpoint = Endpoint(name="rm", urls=("http://localhost/v1",), model="rm")
    served.inputs[ref] = replace(served.inputs[ref], endpoint=endpoint)
    assert not is_spread(served, ref) and not any_may_spread(served)
    assert not is_spread(score(folder, "place", SerialShards()), ref)


def test_of_two_models_the_one_on_a_certain_card_answers_here(folder, serial):
    executor = Elsewhere()
    made = context(folder, "respond", "both", executor)
    (ref,) = [ref for ref in made.inputs if ref == "$a"]
    target = made.inputs[ref]
    assert target.source is not None
    made.inputs[ref] = replace(target, source=replace(target.source, device="cpu:1"))
    found = run(made, "respond")
    assert executor.done == [1, 3, 5, 7]
    assert found | {"numerics.json": b""} == serial["respond"] | {"numerics.json": b""}
