"""Trackers: what they get can be read back, each step is sent once, and secrets come only from the environment."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from tiny_run import togi, write_recipe

from togi.core.errors import RecipeError
from togi.core.files import write_json
from togi.tracking import base
from togi.tracking.base import Tracking, check_trackers


class Told:
    """A tracker that records what it gets."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append((step, metrics))

    def close(self) -> None:
        self.closed = True


def tracking(folder: Path, *names: str) -> Tracking:
    write_json(folder / "settings.json", {"learning_rate": 0.5})
    return Tracking(names, stage="tuned", project="tiny", folder=folder)


@pytest.fixture
def told(monkeypatch) -> Told:
    tracker = Told()

    class Module:
        runs: list[base.TrackedRun] = []  # noqa: RUF012

        @classmethod
        def open_tracker(cls, run):
            cls.runs.append(run)
            return tracker

    monkeypatch.setattr(base.importlib, "import_module", lambda name: Module)
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: True)
    return tracker


def test_a_step_is_told_once_across_a_resume(told, tmp_path):
    first = tracking(tmp_path, "wandb")
    for step in (1, 2, 3):
        first.log(step, {"step": step, "loss": 1 / step, "note": "text"})
    again = tracking(tmp_path, "wandb")  # the checkpoint was at step 1: steps 2 and 3 are repeated
    for step in (2, 3, 4):
        again.log(step, {"step": step, "loss": 1 / step})
    again.close()
    assert told.lines == [(step, {"loss": 1 / step}) for step in (1, 2, 3, 4)]
    assert told.closed
    remembered = json.loads((tmp_path / "tracked.json").read_text())
    assert remembered["step"] == 4 and remembered["run"].startswith("tuned-")


def test_without_trackers_nothing_is_written(tmp_path):
    silent = tracking(tmp_path)
    silent.log(1, {"loss": 1.0})
    silent.close()
    assert not (tmp_path / "tracked.json").exists()


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"track: trackio needs the package trackio: pip install trackio"):
        check_trackers(("trackio",))


def numbers() -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in range(1, 4)]


def tell(folder: Path, name: str) -> Tracking:
    shown = tracking(folder, name)
    for step, loss in numbers():
        shown.log(step, {"step": step, "loss": loss})
    shown.close()
    return shown


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_files_hold_every_step(tmp_path):
    pytest.importorskip("tensorboard")
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    tell(tmp_path, "tensorboard")
    (run,) = (tmp_path / "tracking" / "tensorboard").iterdir()
    events = reader.EventAccumulator(str(run))
    events.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")] == numbers()


@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_every_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    tell(tmp_path, "trackio")
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    (run,) = storage.get_runs("tiny")
    found = storage.get_logs("tiny", run)
    assert [(line["step"], pytest.approx(line["loss"])) for line in found] == numbers()


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_writes_files(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell(tmp_path, "wandb")
    (written,) = (tmp_path / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"loss" in written.read_bytes()


RECIPE = """\
name: shown
track: tensorboard
models:
  base: {path: model, template: chatml}
data:
  talks: {path: talks.jsonl}
stages:
  tuned: {type: train.sft, init: $base, chats: $talks, steps: 3, batch_size: 2}
"""


def test_one_key_of_the_recipe_shows_the_metrics_of_every_training_stage(tmp_path):
    pytest.importorskip("tensorboard")
    path = write_recipe(tmp_path, RECIPE)
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk | {"n": n}) + "\n" for n in range(4)))
    home = tmp_path / "home"
    ended = togi(home, "run", str(path), "--threads", "1", "--compute", "float32")
    assert ended.returncode == 0, ended.stderr
    assert list(home.glob("store/train.sft-*/tracking/tensorboard/tuned-*/events.*"))
    assert not list(home.glob("store/train.sft-*/output/**/events.*"))  # tracking files are not part of the result
    changed = togi(home, "run", str(path), "track=[]", "--threads", "1")
    assert "finished earlier" in changed.stderr  # nor does `track` enter the fingerprint


def test_an_unknown_tracker_is_refused(tmp_path):
    path = write_recipe(tmp_path, RECIPE.replace("track: tensorboard", "track: tensorbored"))
    ended = togi(tmp_path / "home", "check", str(path))
    assert ended.returncode == 2 and "track" in ended.stderr and "tensorboard" in ended.stderr
