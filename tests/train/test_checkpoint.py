"""Checkpoints: resumed runs end with the same bytes; kills, damage and full disks lose nothing."""

import os
import resource
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from togi.core.errors import StageError
from togi.core.files import append_line, install_fault, read_sealed, write_json, write_sealed
from togi.core.ranks import ALONE, Ranks
from togi.objectives.base import Batch, Output
from togi.objectives.grpo import GRPO
from togi.stages.context import Context, Control
from togi.stages.training.trainer_work import Trainer
from togi.train.checkpoint import State, capture, newest_complete, restore, save
from togi.train.loop import MicroBatch
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained


class Cursor:
    """Stands for the state of a batch source."""

    def __init__(self) -> None:
        self.kept: Mapping[str, Any] = {}

    def state(self) -> dict[str, Any]:
        return {"cursor": 7}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kept = state


class Run:
    """A small training run that saves every second step and draws its batches from torch's own generator."""

    def __init__(self, folder: Path, fingerprint: str = "ab" * 32) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 7))
        self.params = trained(self.net.named_parameters())
        optimizer = build_adamw(self.params, AdamWSettings(learning_rate=0.01, weight_decay=0.1))
        schedule = Schedule(kind="cosine", total_steps=8, warmup_steps=2)
        self.update = Update(optimizer=optimizer, schedule=schedule, max_grad_norm=1.0)
        self.folder, self.metrics = folder / "checkpoints", folder / "metrics.jsonl"
        folder.mkdir(exist_ok=True)
        self.progress = Cursor()
        control = Control(send=lambda event: None)
        self.trainer = Trainer(
            context=Context("learn", folder, folder, 17, {}, control, fingerprint=fingerprint),
            params=self.params,
            update=self.update,
            total_steps=100,
            save_every=2,
            keep=2,
            progress=self.progress,
        )

    def forward(self, ids: torch.Tensor) -> Output:
        logp = self.net(ids).log_softmax(-1)
        return Output(logp_N=logp.gather(1, ids.roll(-1)[:, None])[:, 0])

    def batches(self, last: int):
        for _ in range(self.trainer.step, last):
            ids = torch.randint(7, (12,))
            batch = Batch(num_sequences=3, sequence_N=torch.arange(12) // 4, advantage_S=torch.randn(3))
            yield [MicroBatch(inputs=ids, batch=batch)]

    def resume(self) -> "Run":
        self.trainer.resume()
        return self

    def go(self, last: int) -> "Run":
        for info in self.trainer.run(self.forward, GRPO(), self.batches(last)):
            append_line(self.metrics, {"step": info.step, "loss": info.loss, "rate": info.learning_rate})
        return self


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Returns all files except the journal, which also records attempts, and the manifests, which hold its length."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = ("journal.jsonl", "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in names}


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 5, 7])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, stopped_after):
    Run(tmp_path / "whole").go(8)
    Run(tmp_path / "parts").go(stopped_after)
    resumed = Run(tmp_path / "parts").resume()
    assert resumed.trainer.step == stopped_after // 2 * 2
    assert resumed.progress.kept == ({"cursor": 7} if resumed.trainer.step else {})
    resumed.go(8)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in resumed.folder.iterdir()) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize(
    "fault", [f"{p}:{n}" for p in ("before_sync", "before_rename", "after_rename") for n in (1, 3)]
)
def test_a_kill_while_saving_loses_nothing(tmp_path, fault):
    Run(tmp_path / "whole").go(6)
    run = Run(tmp_path / "parts").go(4)
    state = capture(6, run.params, run.update.optimizer, {}, "ab" * 32)
    child = os.fork()
    if child == 0:  # the kill leaves the checkpoint of step 6 unfinished, or just finished
        install_fault(fault)
        save(run.folder, state, files=[run.metrics])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    found = newest_complete(run.folder)
    assert found is not None and found.name in {"step-00000004", "step-00000006"}
    if found.name == "step-00000004":
        Run(tmp_path / "parts").resume().go(6)
        assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_the_state_comes_back_whole(tmp_path):
    run = Run(tmp_path).go(2)
    expected = torch.rand(3)
    state = restore(run.folder / "step-00000002", run.params, run.update.optimizer, fingerprint="ab" * 32)
    assert state.step == 2 and state.progress == {"cursor": 7}
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_written_anew(tmp_path, name, caplog):
    run = Run(tmp_path / "run").go(4)
    reference = bytes_of(tmp_path / "run")
    victim = run.folder / "step-00000004" / name
    if name == "manifest.json":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert newest_complete(run.folder) == run.folder / "step-00000002"
    assert "step-00000004 is skipped" in caplog.text
    Run(tmp_path / "run").resume().go(4)
    assert bytes_of(tmp_path / "run") == reference


def test_there_may_be_no_checkpoint(tmp_path):
    assert newest_complete(tmp_path / "absent") is None


def test_append_only_files_are_cut_back_and_never_grown(tmp_path):
    run = Run(tmp_path).go(2)
    length = run.metrics.stat().st_size
    append_line(run.metrics, {"step": 99})
    run.resume()
    assert run.metrics.stat().st_size == length
    os.truncate(run.metrics, 0)
    with pytest.raises(StageError, match=f"has 0 bytes, but had {length}"):
        run.resume()


def test_another_model_is_refused(tmp_path):
    run = Run(tmp_path).go(2)
    run.params["2.weight"] = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(StageError, match=r"2\.weight is \(7, 8\) there and \(3, 3\) here"):
        run.resume()


def test_another_stage_with_the_same_parameters_is_refused(tmp_path):
    Run(tmp_path).go(4)
    other = Run(tmp_path, fingerprint="cd" * 32)
    with pytest.raises(StageError, match=r"other settings, data or models.*is abababababababab, this stage's is cdcd"):
        other.resume()
    other.trainer.pinned = 2
    with pytest.raises(StageError, match="other settings, data or models"):
        other.trainer.take_pinned()


@pytest.mark.parametrize(("change", "told"), [({"format": 99}, "format 99"), ({}, "format without a number")])
def test_another_format_is_refused(tmp_path, change, told):
    run = Run(tmp_path).go(2)
    path = run.folder / "step-00000002" / "manifest.json"
    manifest = read_sealed(path)
    del manifest["format"]
    (write_sealed if change else write_json)(path, {**manifest, **change})  # the oldest had neither number nor seal
    with pytest.raises(StageError, match=f"another version of togi \\({told}, this one reads 2"):
        run.resume()


@pytest.mark.parametrize(
    "damaged",
    [
        lambda text: text.replace('"step": 4', '"step": 5'),
        lambda text: text.replace('"format": 2', '"format": 3'),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"lengths"', '"length"'),
    ],
)
def test_a_manifest_that_was_cut_or_edited_is_passed_over(tmp_path, damaged, caplog):
    run = Run(tmp_path / "run").go(4)
    reference = bytes_of(tmp_path / "run")
    manifest = run.folder / "step-00000004" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(damaged(text))
    assert manifest.read_text() != text and newest_complete(run.folder) == run.folder / "step-00000002"
    assert "step-00000004 is skipped" in caplog.text
    Run(tmp_path / "run").resume().go(4)
    assert bytes_of(tmp_path / "run") == reference


def test_a_full_disk_ends_with_a_message_and_keeps_what_was_saved(tmp_path):
    run = Run(tmp_path).go(2)
    before = bytes_of(run.folder)
    save_on_a_full_disk(run.folder, ALONE)
    assert bytes_of(run.folder) == before


class Second(Ranks):
    """Rank 1 of 2: it skips what only the first rank does."""

    rank, size = 1, 2

    def on_first_rank(self, make: Callable[[], Any]) -> None:
        pass


def test_a_rank_with_a_full_disk_leaves_what_others_are_writing(tmp_path):
    other = tmp_path / ".step-00000004.tmp" / "weights-00001-of-00002.safetensors"
    other.parent.mkdir()
    other.write_bytes(b"half of it")
    save_on_a_full_disk(tmp_path, Second())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]


def save_on_a_full_disk(folder: Path, ranks: Ranks) -> None:
    big = torch.zeros(100_000)
    state = State(step=4, weights={"w": big}, optimizer={}, random={"cpu": big}, progress={})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StageError, match=r"checkpoint of step 4 could not be written.*Free some space"):
            save(folder, state, ranks=ranks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_only_the_newest_are_kept(tmp_path):
    run = Run(tmp_path)
    for step in range(1, 5):
        state = capture(step, run.params, run.update.optimizer, {})
        save(run.folder, state, keep=1)
    assert [path.name for path in run.folder.iterdir()] == ["step-00000004"]
