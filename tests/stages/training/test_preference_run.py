"""`train.dpo` and `train.smpo`, run as a user runs them: two rounds, their references, kills, and what was saved."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_pairs import RECIPE, metrics_of, rows, write_preferences
from tiny_run import results, togi

from togi.core.records import Message
from togi.core.sources import ModelSource
from togi.model.forest import Sequence
from togi.model.load import load
from togi.model.policy import plain_logprobs
from togi.text.render import render_chat

STAGES = ("first", "second", "lora_first", "lora_second", "margin")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recipe after one undisturbed run, whose results are in home/."""
    folder = tmp_path_factory.mktemp("learnt")
    ended = togi(folder / "home", "run", str(write_preferences(folder)), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    return folder


def stage(folder: Path, name: str) -> Path:
    return (folder / "home" / "runs" / "tiny" / name).resolve()


@torch.no_grad()
def sums(model: Path, template: str | None = None) -> list[list[float]]:
    """Returns the log-probabilities of both answers of each row, computed naively, one sequence at a time."""
    loaded = load(ModelSource(kind="path", name=str(model), template=template), model)
    found = []
    for row in rows():
        sides = []
        for answer in (row["chosen"], row["rejected"]):
            turns = [Message("user", row["prompt"], train=False), Message("assistant", answer)]
            made = render_chat(loaded.template, loaded.tokenizer, turns)
            sides.append(float(plain_logprobs(loaded.net, [Sequence(made.ids, made.mask)]).sum()))
        found.append(sides)
    return found


def stored(folder: Path) -> list[list[float]]:
    units = sorted((folder / "units").glob("reference-*.json"))
    return [values for unit in units for values in json.loads(unit.read_text())]


@pytest.mark.parametrize("name", ["first", "second", "lora_first", "lora_second"])
def test_before_the_first_update_the_policy_is_its_reference(learnt, name):
    """So every margin is 0 and the loss of the first step is log 2, in both rounds."""
    line = metrics_of(stage(learnt, name))[0]
    rounding = 4 * 2**-23 * abs(line["logp_chosen"])  # of four sums in float32: the two passes are cut differently
    assert line["chosen_change"] == pytest.approx(0, abs=rounding)
    assert line["margin"] == pytest.approx(0, abs=rounding)
    sft = 0.1 * -line["logp_chosen"] if name == "second" else 0.0
    assert line["loss"] == pytest.approx(math.log(2) + sft, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "before"), [("second", "first"), ("lora_second", "lora_first"), ("first", None), ("lora_first", None)]
)
def test_the_reference_is_what_the_round_before_ended_with(learnt, name, before):
    model = learnt / "model" if before is None else stage(learnt, before) / "output" / "model"
    wanted = sums(model, "chatml" if before is None else None)
    found = stored(stage(learnt, name))
    torch.testing.assert_close(torch.tensor(sorted(found)), torch.tensor(sorted(wanted)), rtol=1e-5, atol=1e-4)


def test_two_rounds_do_not_share_a_reference(learnt):
    for first, second in (("first", "second"), ("lora_first", "lora_second")):
        difference = torch.tensor(sorted(stored(stage(learnt, first)))) - torch.tensor(
            sorted(stored(stage(learnt, second)))
        )
        assert difference.abs().max() > 0.1


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_learns_to_prefer_what_was_chosen(learnt, name):
    lines = metrics_of(stage(learnt, name))
    if name == "second":  # its loss uses means over tokens, the logged margin uses sums
        assert lines[-1]["loss"] < lines[0]["loss"]
    else:
        assert lines[-1]["margin"] > lines[0]["margin"]
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_validation_is_measured_where_it_is_asked_for(learnt):
    lines = metrics_of(stage(learnt, "first"))
    assert [line["step"] for line in lines if "validation/accuracy" in line] == [2, 4]
    assert lines[-1]["step"] == 4 and metrics_of(stage(learnt, "margin"))[-1]["validation/loss"] > 0


def test_the_margin_of_smpo_follows_its_schedule(learnt):
    lines = metrics_of(stage(learnt, "margin"))
    assert [line["target_margin"] for line in lines] == pytest.approx([0.01, 0.01 + 0.34 / 2])


@pytest.mark.parametrize(
    "point",
    ["after_rename:14", *(pytest.param(p, marks=pytest.mark.slow) for p in ("before_rename:3", "mid_append:31"))],
)
def test_killed_anywhere_a_run_ends_with_the_same_bits(learnt, tmp_path, point):
    killed = togi(tmp_path, "run", str(learnt / "tiny.yaml"), "--threads", "1", TOGI_CRASH_AT=point)
    assert killed.returncode == 5, killed.stderr
    ended = togi(tmp_path, "run", str(learnt / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == results(learnt / "home")


def test_the_reference_is_not_computed_again_after_a_kill(learnt, tmp_path):
    """The stored numbers of a finished unit are read even if the stage is unfinished and its checkpoints are gone."""
    shutil.copytree(learnt / "home", tmp_path / "home", symlinks=True)
    folder = (tmp_path / "home" / "runs" / "tiny" / "second").resolve()
    (folder / "DONE").unlink()
    unit = next((folder / "units").glob("reference-*.json"))
    before = os.stat(unit).st_mtime_ns
    ended = togi(tmp_path / "home", "run", str(learnt / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert os.stat(unit).st_mtime_ns == before
    assert results(tmp_path / "home") == results(learnt / "home")


def test_settings_that_contradict_each_other_are_refused_at_check(tmp_path):
    write_preferences(tmp_path)
    for old, new, said in (
        ("loss: sigmoid_norm", "loss: robust", "set label_smoothing"),
        ("loss: sigmoid_norm", "loss: ipo, label_smoothing: 0.1", "has no effect on loss: ipo"),
        ("type: train.smpo,", "type: train.smpo, margin_delta: 0.2,", "smooth_double_bound"),
        ("type: train.smpo,", "type: train.smpo, second_bos: true,", "score_header"),
        ("type: train.smpo,", "type: train.smpo, max_prompt_length: 9,", "only to overflow: truncate"),
    ):
        (tmp_path / "wrong.yaml").write_text(RECIPE.replace(old, new))
        ended = togi(tmp_path / "home", "check", str(tmp_path / "wrong.yaml"))
        assert ended.returncode == 2 and said in ended.stderr, ended.stderr
