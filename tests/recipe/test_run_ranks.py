"""`togi run` with two processes: after kills and failures of several kinds it reports what happened and resumes."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import forked
import psutil
import pytest
import torch
from agents import two_agents
from safetensors.torch import load_file
from tiny_run import command_of, environment, results, togi
from tiny_texts import write_texts

RECIPE = """\
name: tiny
seed: 3
models:
  base: {path: model, template: chatml}
data:
  dialogs: {path: chats.jsonl}
stages:
  taught:
    type: train.sft
    init: $base
    chats: $dialogs
    batch_size: 2
    epochs: 8
    learning_rate: 1e-3
    validation: 0.25
    evaluate_every: 2
    choose: best
    save_every: 2
    micro_batch_tokens: 64
    processes: 2
"""
RUN = ("run", "--threads", "2", "--compute", "float32")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder of a recipe that two processes ran, undisturbed."""
    folder = tmp_path_factory.mktemp("two")
    ended = togi(folder / "home", *RUN, str(write_texts(folder, RECIPE)))
    assert ended.returncode == 0, ended.stderr
    return folder


def stage(home: Path) -> Path:
    return (home / "runs" / "tiny" / "taught").resolve()


def start(recipe: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "togi", *RUN, str(recipe)]
    return forked.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def held_after(home: Path, count: int, run: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The ranks of a run that has done `count` steps, all suspended."""
    while lines_in(home) < count:
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.002)
    commands = {p: command_of(p) for p in psutil.Process(run.pid).children(recursive=True)}
    workers = {p: command for p, command in commands.items() if "togi.recipe.worker" in command}
    ranks = {int(command[command.index("togi.recipe.worker") + 1]): p for p, command in workers.items()}
    assert sorted(ranks) == [0, 1]
    for rank in ranks.values():
        rank.suspend()
    return ranks


def lines_in(home: Path) -> int:
    try:
        return sum(path.read_bytes().count(b"\n") for path in (home / "store").glob("train.sft-*/metrics.jsonl"))
    except FileNotFoundError:  # a restarted stage removes the lines of the previous attempt
        return 0


def ended(run: subprocess.Popen[str]) -> str:
    """The output of a run that must end by itself within 30 s."""
    begun = time.monotonic()
    text, _ = run.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    return " ".join(text.split())


def state_of(home: Path) -> str:
    return json.loads((home / "runs" / "tiny" / "state.json").read_text())["state"]


@pytest.mark.slow
def test_killed_whole_it_is_told_as_interrupted_and_ends_with_the_same_bits(two, tmp_path):
    recipe = str(two / "tiny.yaml")
    run = start(two / "tiny.yaml", tmp_path)
    ranks = held_after(tmp_path, 3, run)
    assert "tiny: running" in togi(tmp_path, "status", recipe).stdout
    run.kill()
    run.communicate()
    for rank in ranks.values():
        rank.resume()
    assert psutil.wait_procs(ranks.values(), timeout=30)[1] == []
    assert state_of(tmp_path) == "running"
    status = togi(tmp_path, "status", recipe).stdout
    assert "tiny: interrupted (its process ended" in status and re.search(r"taught +train\.sft +interrupted", status)
    togi(tmp_path, "report", recipe)
    assert state_of(tmp_path) == "interrupted"
    again = togi(tmp_path, *RUN, recipe)
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == results(two / "home")
    assert json.loads((stage(tmp_path) / "numerics.json").read_text())["processes"] == 2


def test_a_rank_that_fails_and_one_that_is_killed_are_named_and_another_number_goes_on(two, tmp_path):
    run = start(two / "tiny.yaml", tmp_path)
    ranks = held_after(tmp_path, 1, run)
    ranks[1].rlimit(psutil.RLIMIT_FSIZE, (2000, 2000))  # stands in for a full disk of this rank
    for rank in ranks.values():
        rank.resume()
    text = ended(run)
    assert run.returncode == 4 and "could not be written" in text and "(rank 1 of 2)" in text, text
    assert "Traceback" not in text

    run = start(two / "tiny.yaml", tmp_path)
    ranks = held_after(tmp_path, lines_in(tmp_path) + 3, run)
    ranks[1].kill()
    ranks[0].resume()
    text = ended(run)
    assert run.returncode == 5 and "the worker (rank 1 of 2) was killed (SIGKILL)" in text, text

    one = togi(tmp_path, *RUN, str(two / "tiny.yaml"), "stages.taught.processes=1", "--accept-numerics")
    assert one.returncode == 0, one.stderr
    assert stage(tmp_path).name == stage(two / "home").name  # `processes` does not affect the fingerprint
    weights, others = (
        load_file(stage(home) / "output" / "model" / "model.safetensors") for home in (tmp_path, two / "home")
    )
    assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)


def test_as_ranks_of_torchrun_it_ends_with_the_same_bits(two, tmp_path):
    recipe = str(two / "tiny.yaml")
    with two_agents() as agents:
        run = agents.start([tmp_path, tmp_path], "run", "--compute", "float32", recipe)
        (first, said), (second, quiet) = run.ended()
    assert (first, second) == (0, 0), said + quiet
    assert results(tmp_path) == results(two / "home")
    assert "taught (train.sft)" in said and "taught" not in quiet
