"""Memory settings of training stages: none changes what is learnt, and predictions are reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_run import QUESTIONS, togi, write_recipe
from tiny_texts import bare_context, chats

from togi.client.endpoint import Endpoint
from togi.core.settings import ChatsRef, ModelRef
from togi.model.sizes import Job, Shape, largest, predict, rank_peak
from togi.stages import models
from togi.stages.context import Resolved
from togi.stages.training import grpo, memory_work, sft_work
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.job import training_job
from togi.stages.training.resources import USABLE_CPU
from togi.stages.training.reward import TrainReward
from togi.stages.training.sft import TrainSft
from togi.train import machine, usage

BASE, CHATS = ModelRef("$base"), ChatsRef("$chats")
RECIPE = """\
name: places
models:
  base: {path: model, template: chatml}
data:
  talks: {path: talks.jsonl}
  pairs: {path: pairs.jsonl}
stages:
  tuned: {type: train.sft, init: $base, chats: $talks, steps: 3, batch_size: 4, learning_rate: 1e-2}
  adapted:
    {type: train.dpo, init: $tuned, pairs: $pairs, steps: 3, batch_size: 4, learning_rate: 1e-2, lora: {rank: 2}}
  scorer: {type: train.reward, init: $base, pairs: $pairs, steps: 3, batch_size: 4, learning_rate: 1e-2}
"""


def run(folder: Path, *overrides: str) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict]]:
    """Returns weights and memory.json of each stage."""
    home = folder / "-".join(("home", *(o.rpartition(".")[2] for o in overrides)))
    ended = togi(home, "run", str(folder / "tiny.yaml"), *overrides, "--threads", "1", "--compute", "float32")
    assert ended.returncode == 0, ended.stderr
    runs = home / "runs" / "places"
    names = ("tuned", "adapted", "scorer")
    weights = {name: load_file(runs / name / "output" / "model" / "model.safetensors") for name in names}
    return weights, {name: json.loads((runs / name / "memory.json").read_text()) for name in names}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    write_recipe(folder, RECIPE)
    rows = [{"role": "user", "content": q} for q in QUESTIONS]
    answers = [[{"role": "assistant", "content": text + str(i)}] for i, text in enumerate(["sun"] * 4 + ["rain"] * 4)]
    talks = [{"messages": [row, *answer]} for row, answer in zip(rows, answers, strict=True)]
    pairs = [{"prompt": [r], "chosen": a, "rejected": b} for r, a, b in zip(rows, answers, answers[::-1], strict=True)]
    for name, found in (("talks", talks), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder, run(folder)


def stages(setting: str) -> list[str]:
    return [f"stages.{name}.{setting}" for name in ("tuned", "adapted", "scorer")]


@pytest.mark.parametrize(
    "setting", ["activation_checkpointing=true", "micro_batch_tokens=64", "micro_batch_tokens=auto"]
)
def test_where_and_how_fast_change_nothing_but_rounding(plain, setting):
    folder, (expected, _) = plain
    found, memory = run(folder, *stages(setting))
    for name, weights in expected.items():
        start = load_file(folder / "model" / "model.safetensors")
        for key, value in weights.items():
            moved = (value - start[key]).abs().max() if key in start else value.abs().max()
            assert (found[name][key] - value).abs().max() <= 2e-3 * moved + 1e-7, (name, key)
    if setting.endswith("auto"):
        assert all(entry["micro_batch_tokens"] == 2**16 for entry in memory.values())  # a tiny model: all fits


def test_predicted_and_measured_memory_are_kept(plain):
    _, (_, memory) = plain
    for entry in memory.values():
        assert {"predicted", "measured", "floor", "flops", "tokens", "micro_batch_tokens"} <= entry.keys()
        assert entry["predicted"] > entry["floor"] > 0 and entry["tokens"] > 0


def test_the_largest_micro_batch_is_measured_where_examples_are_longer_than_the_limit(tmp_path):
    context = bare_context(tmp_path, chats=chats())
    fit = memory_work.MemoryBudget(
        training_job(TrainSft(init=BASE, chats=CHATS, steps=2, micro_batch_tokens=64)), context
    )
    sft_work.run(fit.settings, context)
    fit.finish()
    lines = [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
    memory = json.loads((context.folder / "memory.json").read_text())
    assert memory["largest_micro_batch"] == max(line["largest_micro_batch"] for line in lines) > 64
    assert memory["predicted"] == round(predict(fit.shape, fit.job, memory["largest_micro_batch"]).peak)


def test_graders_take_memory_unless_they_are_on_a_server(tmp_path):
    context = bare_context(tmp_path, chats=chats())
    reward = {"terms": [{"type": "model", "scorer": "$rm"}]}
    settings = TrainGrpo.model_validate({"init": "$base", "prompts": "$prompts", "reward": reward})
    here = Resolved("scorer", source=context.inputs["$base"].source)
    there = replace(here, endpoint=Endpoint(name="rm", urls=("http://127.0.0.1:9/v1",), model="rm"))
    beside = []
    for context.inputs["$rm"] in (here, there):
        beside.append(memory_work.MemoryBudget(grpo.job(settings), context).beside)
    assert beside[0] > beside[1]
    reward = {"terms": [{"type": "judge", "judge": "$base"}]}
    judged = TrainGrpo.model_validate({"init": "$base", "prompts": "$prompts", "reward": reward})
    budget = memory_work.MemoryBudget(grpo.job(judged), context)
    assert budget.beside - beside[1] == 4 * budget.shape.parameters  # a judge keeps its head


def test_a_training_begins_without_what_earlier_stages_kept(tmp_path):
    context = bare_context(tmp_path, chats=chats())
    models.load_model(context, BASE)
    assert models.kept_model.cache_info().currsize
    small = [torch.ones(25_000) for _ in range(3_000)]
    del small[:-1]  # 300 MB of free heap below an array that is still held
    held = usage.used(torch.device("cpu"))
    memory_work.MemoryBudget(training_job(TrainSft(init=BASE, chats=CHATS, steps=2, micro_batch_tokens=64)), context)
    assert not models.kept_model.cache_info().currsize
    assert usage.peak(torch.device("cpu")) < held - 200e6


def test_auto_takes_what_fits_and_keeps_it(tmp_path, monkeypatch):
    auto = TrainSft(init=BASE, chats=CHATS, steps=1, micro_batch_tokens="auto")
    context = bare_context(tmp_path, chats=chats())
    shape = Shape.of(json.loads((tmp_path / "model" / "config.json").read_text()))

    def free(tokens: int) -> float:
        return predict(shape, Job(), tokens).peak / USABLE_CPU + 1

    monkeypatch.setattr(usage, "available", lambda device: free(512))
    fit = memory_work.MemoryBudget(training_job(auto), context)
    assert fit.settings.micro_batch_tokens == context.fits == 512
    monkeypatch.setattr(usage, "available", lambda device: free(2**17))
    assert (
        memory_work.MemoryBudget(training_job(auto), context).settings.micro_batch_tokens == context.fits == 512
    )  # as after a kill
    other = bare_context(tmp_path / "other", chats=chats())
    fit = memory_work.MemoryBudget(training_job(auto), other)
    assert (fit.settings.micro_batch_tokens, other.fits) == (2**16, 2**17)


def test_auto_counts_only_the_share_of_one_of_several_processes(tmp_path, monkeypatch):
    context = bare_context(tmp_path, chats=chats())
    shape = Shape.of(json.loads((tmp_path / "model" / "config.json").read_text()))
    free = 2 * rank_peak(shape, Job(ranks=2), 512) / USABLE_CPU + 2  # of the machine, for both
    monkeypatch.setattr(usage, "available", lambda device: free)
    fit = memory_work.MemoryBudget(training_job(sft(micro_batch_tokens="auto", processes=2)), context)
    assert fit.settings.micro_batch_tokens == 512 > largest(shape, Job(), USABLE_CPU * free / 2)


def sft(**changes) -> TrainSft:
    return TrainSft.model_validate({"init": "$base", "chats": "$talks", **changes})


def test_settings_become_a_job():
    assert training_job(sft()).at("float32") == Job()
    found = training_job(sft(lora={"base": "nf4", "rank": 4}, optimizer="adamw-8bit")).at("bfloat16", cuda=True)
    assert (found.weights, found.compute_dtype, found.rank, found.bits) == ("nf4", "bfloat16", 4, 8)
    away = training_job(sft(weights="bfloat16-master", offload_optimizer=True))
    assert away.at("float32", cuda=True).offload and not away.at("float32").offload


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora": {}, "weights": "bfloat16-master"}, "adapter is already float32"),
        ({"lora": {"base": "nf4"}, "weights": "bfloat16"}, "4 bits"),
        ({"processes": 2, "optimizer": "adamw-8bit"}, "works with one process only"),
        ({"processes": 2, "lora": {"base": "nf4"}}, "works with one process only"),
        ({"micro_batch_tokens": 8}, "greater than or equal to 64"),
        ({"micro_batch_tokens": "most"}, "auto"),
        ({"lora": {"targets": ["q_proj", "q_proj"]}}, "listed only once"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
    ],
)
def test_contradictions_are_refused_before_anything_loads(changes, says):
    with pytest.raises(ValidationError, match=says):
        sft(**changes)


def test_router_loss_is_off_where_it_would_count_branches():
    assert TrainSft.adds_router_loss and not TrainDpo.adds_router_loss and not TrainGrpo.adds_router_loss
    with pytest.raises(ValidationError, match="router_loss"):
        TrainReward.model_validate({"init": ModelRef("$base"), "pairs": "$pairs", "router_loss": 0.1})


def test_memory_at_hand_knows_the_limits_of_control_groups(tmp_path, monkeypatch):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:   8000000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/box/job\n")
    job = tmp_path / "cgroup/box/job"
    job.mkdir(parents=True)
    for folder, most, now in ((job.parent, "3000", "1000"), (job, "max", "900")):
        (folder / "memory.max").write_text(most + "\n")
        (folder / "memory.current").write_text(now + "\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 400\n")
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    assert usage.available(torch.device("cpu")) == 3000 - (1000 - 400)
    (job / "memory.max").write_text("1000\n")
    assert usage.available(torch.device("cpu")) == 1000 - (900 - 400)
    (tmp_path / "proc/self/cgroup").write_text("0::/elsewhere\n")
    assert usage.available(torch.device("cpu")) == 8_000_000 * 1024


def test_sizes_are_told_in_gigabytes():
    assert memory_work.gigabytes(1.25e9) == "1.25 GB"
