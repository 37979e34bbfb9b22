"""kill -9 of a run whose policy is sampled and graded on servers: of the trainer, the engine or the reward server.
Stored samples are replayed, and the bytes are those of an undisturbed run.

A kill comes after something was written to disk, or after later answers of a server, so it hits the work that follows.
"""

import json
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_recipes import engine_recipe
from engines import Forked, Process, togi_serve
from tiny_run import QUESTIONS, kill_all, results, start, tiny_model
from transformers import LlamaConfig, LlamaForSequenceClassification

MODELS = (
    "base: {path: model, template: chatml}",
    "there: {url: 'ENGINE', model: policy, protocol: togi, concurrency: 1}",
    "rm: {url: 'REWARD', model: policy, kind: reward, protocol: togi}",
)
SETTINGS = (
    "engine: {model: $there, tolerance: 0.001}",
    "steps: STEPS",
    "learning_rate: 1e-3",
    "save_every: 2",
    "sampling: {max_tokens: 16}",
    "reward: {terms: [{type: model, scorer: $rm}]}",
)
RECIPE = engine_recipe("served", MODELS, *SETTINGS)
AHEAD = "    staleness: 1\n    loss: {sampler_correction: {level: token, mode: truncate, cap: 2.0}}\n"
ANSWERED = re.compile(r'togi_requests_total\{path="/v1/(?:completions|scores)",status="200"\} ([0-9.]+)')
SECONDS = 1500  # of one run, on a busy machine
GONE = "no server has answered"
Servers = dict[str, Process]


@dataclass(frozen=True)
class Moment:
    """When `killed` is killed: after so many batches of samples are `stored`, steps `logged` and checkpoints `saved`,
    and the server `asked` has then answered `more` requests."""

    killed: str
    stored: int = 0
    logged: int = 0
    saved: int = 0
    asked: str = ""
    more: int = 1


MOMENTS = [
    Moment("trainer", asked="engine", more=3),  # during the first batch: nothing is stored
    Moment("engine", stored=1),  # before or while it loads the next weights
    Moment("reward", stored=2, asked="engine"),  # before it grades the batch that is being sampled
    Moment("trainer", saved=1),
    Moment("engine", stored=3, asked="engine", more=3),  # during a batch
    Moment("trainer", stored=4),  # the samples are stored, and no step has used them yet
    Moment("reward", stored=4, asked="reward"),  # between two groups of a batch
    Moment("trainer", logged=6),
    Moment("engine", stored=7, asked="reward"),  # sampled and partly graded, not stored
    Moment("trainer", stored=8, asked="reward"),  # the same
]


def write(folder: Path, servers: Servers, steps: int, more: str = "") -> Path:
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    text = RECIPE.replace("ENGINE", servers["engine"].url).replace("REWARD", servers["reward"].url)
    path = folder / "served.yaml"
    path.write_text(text.replace("STEPS", str(steps)) + more)
    return path


def models(folder: Path) -> tuple[Path, Path]:
    """A policy, and a reward model."""
    policy, reward = folder / "model", folder / "rm"
    for each in (policy, reward):
        tiny_model(each)
    torch.manual_seed(7)
    config = LlamaConfig.from_pretrained(reward)
    config.num_labels, config.pad_token_id = 1, None
    LlamaForSequenceClassification(config).save_pretrained(reward)
    return policy, reward


def reached(moment: Moment, home: Path) -> bool:
    """Whether the files on disk have reached the moment."""
    found = [*(home / "store").glob("train.grpo-*")]
    if not found:
        return not (moment.stored or moment.logged or moment.saved)
    folder = found[0]
    metrics = folder / "metrics.jsonl"
    return (
        len([*folder.glob("checkpoints/samples/batch-*.json")]) >= moment.stored
        and (metrics.read_bytes().count(b"\n") if metrics.exists() else 0) >= moment.logged
        and len([*folder.glob("checkpoints/step-*")]) >= moment.saved
    )


def answered(server: Process) -> int:
    """The number of samples, or scores, that a server has returned since its start."""
    return sum(int(float(each)) for each in ANSWERED.findall(server.page("/metrics") or ""))


def kill_at(moments: Sequence[Moment], recipe: Path, home: Path, servers: Servers) -> tuple[int, str]:
    """Runs, and kills at each moment; servers and trainer are restarted at once. Returns how the last run ended."""
    run = start(recipe, home)
    for moment in moments:
        while not reached(moment, home):
            run = alive(run, moment, recipe, home)
        before = answered(servers[moment.asked]) if moment.asked else 0
        while moment.asked and answered(servers[moment.asked]) < before + moment.more:
            run = alive(run, moment, recipe, home)
        if moment.killed == "trainer":
            kill_all(run)
            run = start(recipe, home)
        else:
            servers[moment.killed].kill()
            servers[moment.killed].start()
    code, text = through(run)
    return through(start(recipe, home)) if code and GONE in text else (code, text)


def through(run: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and output of a run."""
    text, _ = run.communicate(timeout=SECONDS)
    return run.returncode, text


def alive(run: "subprocess.Popen[str]", moment: Moment, recipe: Path, home: Path) -> "subprocess.Popen[str]":
    """The run, or a new one if it gave up because a server on a busy machine took too long to come back."""
    time.sleep(0.005)
    if run.poll() is None:
        return run
    text = run.communicate()[0]
    assert run.returncode and GONE in text, f"{moment} never came: {text}"
    return start(recipe, home)


def ended(home: Path) -> dict[str, Any]:
    """The results of a run without the probes of steps: a step whose samples are replayed requests none."""
    found = results(home)
    for name, rows in found.items():
        if name.endswith("/metrics"):
            found[name] = [{key: value for key, value in row.items() if key != "engine/probe"} for row in rows]
    return found


def disturb(folder: Path, servers: Servers, moments: Sequence[Moment], steps: int, more: str = "") -> None:
    """Runs a recipe undisturbed, and with kills; both end with the same bytes."""
    recipe = write(folder, servers, steps, more)
    for code, text in (
        through(start(recipe, folder / "quiet")),
        kill_at(moments, recipe, folder / "killed", servers),
    ):
        assert code == 0, text
    assert ended(folder / "killed") == ended(folder / "quiet")


def test_kills_of_engine_and_trainer_change_no_byte(tmp_path: Path) -> None:
    policy, reward = models(tmp_path)
    with ExitStack() as stack:
        servers: Servers = {"engine": Forked(policy, tmp_path, False), "reward": Forked(reward, tmp_path, True)}
        for server in servers.values():
            stack.callback(server.kill)
        moments = [Moment("engine", stored=1, asked="engine", more=2), Moment("trainer", stored=3, asked="reward")]
        disturb(tmp_path, servers, moments, steps=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("more", [pytest.param("", id="at-once"), pytest.param(AHEAD, id="one-batch-ahead")])
def test_ten_kills_change_no_byte(tmp_path: Path, more: str) -> None:
    policy, reward = models(tmp_path)
    with (
        togi_serve(policy, tmp_path / "home", "--updates") as engine,
        togi_serve(reward, tmp_path / "home", "--reward") as grader,
    ):
        disturb(tmp_path, {"engine": engine, "reward": grader}, MOMENTS, 10, more)
