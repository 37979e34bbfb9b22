"""`hardware:` of a recipe: the devices that `plan` and `check` use instead of this machine's."""

import json
from dataclasses import replace

import pytest
from large_shapes import THIRTEEN
from places import ROOT
from tiny_run import togi, write_recipe

from togi.cli.planned import costs
from togi.core.errors import RecipeError
from togi.model.sizes import NF4, Job, Shape, adapter_size, at_work, key_bytes, predict
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.training.job import grader_bytes, scorer_shape
from togi.stages.training.phases import Rollouts, drawing, forward_bytes, key_cache, one_group

RECIPE = """\
name: cards
hardware:
  - {name: big, memory: 32, tflops: 200, bandwidth: 1000}
  - {name: small, memory: 16}
models:
  base: {path: thirteen, template: chatml}
  rm: {path: half, kind: reward, device: "cuda:1"}
data:
  talks: {path: talks.jsonl}
stages:
  tuned:
    type: train.sft
    init: $base
    chats: $talks
    steps: 100
    max_length: 4096
    lora: {rank: 16, base: nf4}
    activation_checkpointing: true
"""
FULL = ("stages.tuned.lora=null", "stages.tuned.activation_checkpointing=false")


@pytest.fixture
def recipe(tmp_path):
    for name, layers in (("thirteen", 40), ("half", 16)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**THIRTEEN, "num_hidden_layers": layers}))
    (tmp_path / "talks.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    path = tmp_path / "cards.yaml"
    path.write_text(RECIPE)
    return path


def planned(recipe, *overrides, stage="tuned"):
    graph = build(validate(read_tree(recipe, overrides)))
    return costs(graph, recipe.parent / "store")[stage]


def test_a_declared_card_computes_in_bfloat16_and_has_no_logits_kept(recipe):
    found = planned(recipe)
    job = Job(weights="nf4", rank=16, compute_dtype="bfloat16", checkpointing=True, accelerator=True)
    assert found.peak_bytes == predict(Shape.of(THIRTEEN), job, 4096).peak
    assert found.memory == {"cuda:0": found.peak_bytes} and not found.problems


def test_time_follows_from_tflops_and_says_that_it_is_the_least(recipe):
    found = planned(recipe)
    assert found.seconds == pytest.approx(found.flops / 200e12)
    assert any("full speed" in note and "big (cuda:0)" in note for note in found.notes)
    assert planned(recipe, "hardware.0.tflops=100").seconds == pytest.approx(2 * found.seconds)
    silent = planned(recipe, "hardware.0.tflops=null")
    assert silent.seconds is None and "time: hardware gives no tflops for big (cuda:0)" in silent.unknown


def test_what_would_fit_is_said_and_does_fit(recipe):
    small = ("hardware.0.memory=13", "stages.tuned.max_length=1024")
    problem = planned(recipe, *small).problems[0]
    assert f"{recipe}:2: hardware: stage tuned" in problem
    assert "it needs 13.02 GB of big (cuda:0), which has 13 GB, of which 11.70 may be used" in problem
    tokens = int(problem.rpartition("it fits with micro_batch_tokens: ")[2])
    assert tokens >= 1024
    assert not planned(recipe, *small, f"stages.tuned.micro_batch_tokens={tokens}").problems
    assert planned(recipe, *small, f"stages.tuned.micro_batch_tokens={tokens + 256}").problems
    longer = planned(recipe, small[0]).problems[0]  # examples are never cut
    assert longer.endswith(
        "the minimum is 13.02 GB, with micro-batches of 4,096 tokens, because examples are never cut"
    )


def test_four_bits_and_checkpointing_are_offered_where_they_help(recipe):
    problem = planned(recipe, *FULL).problems[0]
    assert "lora: {rank: 16, base: nf4}" in problem and "adamw-8bit" not in problem
    hopeless = planned(recipe, "hardware.0.memory=4").problems[0]
    assert "the minimum is" in hopeless and "it fits" not in hopeless


def test_auto_takes_what_fits_the_declared_card(recipe):
    found = planned(recipe, "stages.tuned.micro_batch_tokens=auto")
    note = next(note for note in found.notes if note.startswith("micro_batch_tokens auto"))
    assert "tokens fit the 28.80 GB that may be used of big (cuda:0)" in note and found.peak_bytes <= 28.8e9


def test_a_reward_model_counts_on_its_own_card(recipe):
    policy = (
        "stages.policy={type: train.grpo, init: $base, prompts: $talks, reward: {terms: [{type: model, scorer: $rm}]}, "
        "lora: {rank: 16, base: nf4}, activation_checkpointing: true, key_cache: 1}"
    )
    apart = planned(recipe, policy, stage="policy")
    beside = planned(recipe, policy, "models.rm.device=cuda:0", stage="policy")
    size = apart.memory["cuda:1"]
    shape = Shape.of({**THIRTEEN, "num_hidden_layers": 16, "tie_word_embeddings": True})
    weights = 2 * shape.parameters
    assert size == weights + forward_bytes(shape, 8 * (64 + 64), 2)  # it scores a group at once
    longer = planned(recipe, policy, "stages.policy.sampling.max_tokens=2048", stage="policy").memory["cuda:1"]
    assert longer == weights + forward_bytes(shape, 8192, 2)  # of which it computes at most 8,192 tokens
    assert beside.memory.keys() == {"cuda:0"}
    assert beside.phases["update"] - apart.phases["update"] == pytest.approx(weights)
    assert not apart.problems
    lost = planned(recipe, policy, "models.rm.device=cuda:2", stage="policy").problems[0]
    assert "a reward model is on cuda:2, which hardware does not name" in lost
    small = planned(recipe, policy, "hardware.1.memory=8", stage="policy").problems[0]
    assert "of small (cuda:1), which has 8 GB" in small and "a smaller reward model" in small


def test_models_that_are_only_read_must_fit_and_leave_room_for_keys(recipe):
    answers = "stages.answers={type: respond, prompts: $talks, models: [$base], max_tokens: 64}"
    found = planned(recipe, answers, stage="answers")
    weights = 2 * Shape.of(THIRTEEN).parameters
    assert found.peak_bytes == found.memory["cuda:0"] == weights and not found.problems
    note = next(note for note in found.notes if note.startswith("keys"))
    tokens = int((0.9 * 32e9 - weights) // key_bytes(Shape.of(THIRTEEN), 2))
    assert f"{tokens:,} tokens at once" in note
    (small,) = planned(recipe, answers, "models.base.device=cuda:1", stage="answers").problems
    assert "stage answers: the weights of base need 2" in small and "small (cuda:1), which has 16 GB" in small


def test_ranks_share_what_they_train_and_need_a_card_each(recipe):
    many = ("stages.tuned.lora=null", "hardware=[" + ", ".join(["{name: a, memory: 80 GB}"] * 8) + "]")
    one, eight = (planned(recipe, *many, f"stages.tuned.processes={n}").peak_bytes for n in (1, 8))
    weights = 4 * Shape.of(THIRTEEN).parameters
    assert weights < eight < one / 2  # each rank holds all weights when it loads them
    assert (
        "processes is 9, but hardware names 8 cards" in planned(recipe, *many, "stages.tuned.processes=9").problems[0]
    )


def test_a_policy_on_several_cards_has_the_phases_of_one_of_them(recipe):
    path = recipe.parent / "policy.yaml"
    path.write_text(POLICY)
    cards = "hardware=[" + ", ".join(["{name: a, memory: 180}"] * 8) + "]"
    many = (cards, "stages.policy.lora=null", "stages.policy.key_cache=null", "stages.policy.prompts_per_step=16")
    found = planned(path, *many, "stages.policy.processes=8", stage="policy")
    shape = Shape.of(THIRTEEN)
    whole, moments, copy = 4 * shape.parameters, 8 * shape.parameters, 2 * shape.parameters
    between = (whole + moments) / 8 + copy
    keys = 2 * 9 * 1024 * key_bytes(shape, 2)  # each samples 2 of the 16 prompts, 8 answers to each
    assert found.phases["load"] == whole * (1 + 1 / 8) + copy
    assert found.phases["sample"] == between + keys + forward_bytes(shape, 2048, 2)
    assert found.phases["score"] == between  # all have sampled before the first one grades
    job = Job(compute_dtype="bfloat16", checkpointing=True, accelerator=True, entropy=True, ranks=8)
    trains = at_work(shape, job, predict(shape, job, 4096))
    assert found.phases["update"] == found.peak_bytes == copy + trains  # gathered weights are on the host
    assert "peak by phase: load 89.10" in " ".join(found.notes) and not found.problems
    four = planned(path, *many, "stages.policy.processes=4", stage="policy")
    assert four.phases["sample"] > found.phases["sample"] + keys
    tight = (*many, "stages.policy.processes=8", f"hardware={cards[9:].replace('180', '100')}")
    assert "the minimum is 98.52 GB" in planned(path, *tight, stage="policy").problems[0]


def test_with_an_adapter_each_process_keeps_the_frozen_weights_whole_for_its_sampler(recipe):
    path = recipe.parent / "policy.yaml"
    path.write_text(POLICY)
    two = (
        "hardware=[{name: a, memory: 80}, {name: a, memory: 80}]",
        "stages.policy.lora.base=as_loaded",
        "stages.policy.weights=bfloat16",
        "stages.policy.processes=2",
    )
    found = planned(path, *two, stage="policy")
    shape, job = Shape.of(THIRTEEN), Job(weights="bfloat16", rank=16, compute_dtype="bfloat16")
    base, adapter = 2 * shape.parameters, adapter_size(shape, job)
    assert found.phases["load"] == 1.5 * (base + 4 * adapter) + 2 * adapter
    assert found.phases["score"] == (base + 12 * adapter) / 2 + base + 2 * adapter
    work = replace(job, checkpointing=True, accelerator=True, entropy=True, ranks=2)
    trains = at_work(shape, work, predict(shape, work, 4096))
    assert found.phases["update"] == pytest.approx(trains + base + 2 * adapter)
    alone = planned(path, *two[1:3], "hardware.0.memory=80", stage="policy")
    assert alone.phases["load"] == base + 6 * adapter and alone.phases["update"] < found.phases["update"]


def test_a_reward_model_of_several_processes_is_loaded_by_each(recipe):
    cards = "hardware=[" + ", ".join(["{name: a, memory: 210}"] * 4) + "]"
    policy = (
        "stages.policy={type: train.grpo, init: $base, prompts: $talks, reward: {terms: [{type: model, scorer: $rm}]}, "
        "activation_checkpointing: true, processes: 2}"
    )
    weights = 2 * Shape.of({**THIRTEEN, "num_hidden_layers": 16, "tie_word_embeddings": True}).parameters
    apart = planned(recipe, cards, policy, "models.rm.device=cuda:3", stage="policy")
    assert apart.memory["cuda:3"] == pytest.approx(2 * weights, rel=0.05) and not apart.problems
    beside = planned(recipe, cards, policy, stage="policy")  # cuda:1, where the second process trains
    assert beside.memory["cuda:1"] == beside.memory["cuda:0"] + apart.memory["cuda:3"]
    assert "a process trains there too" in beside.problems[0]


def test_a_declared_processor_takes_the_place_of_this_one(recipe):
    found = planned(recipe, "hardware=[{name: cpu, memory: 64}]", "compute=bfloat16")
    assert found.memory.keys() == {"cpu"} and not found.problems
    assert planned(recipe, "hardware=[{name: cpu, memory: 15}]", "compute=bfloat16").problems


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("[{name: a}]", "hardware.0.memory: this key is required"),
        ("[{name: a, memory: 32XB}]", "a size is a number of GB"),
        ("[{name: a, memory: 0}]", "greater than 0"),
        ("[{name: a, memory: 1, speed: 2}]", "unknown key"),
        ("[{name: cpu, memory: 1}, {name: cpu, memory: 2}]", "only one device may be called cpu"),
        ("{name: a, memory: 1}", "should be a list"),
    ],
)
def test_hardware_that_says_nothing_is_refused_with_its_place(recipe, value, wanted):
    with pytest.raises(RecipeError) as raised:
        validate(read_tree(recipe, (f"hardware={value}",)))
    assert wanted in str(raised.value) and str(raised.value).startswith("command line (hardware)")


def test_sizes_may_have_units(recipe):
    heads = [validate(read_tree(recipe, (f"hardware.0.memory={text}",))) for text in ("32 GiB", "32000MB", "32")]
    assert [head.hardware[0].size for head in heads] == [32 * 2**30, 32e9, 32e9]


def test_plan_and_check_end_with_what_does_not_fit(tmp_path):
    small = "hardware=[{name: tiny, memory: 1 MB}]"
    recipe = write_recipe(tmp_path)
    for command, shown in (("plan", "0 of 6 stages"), ("check", "model base: template")):
        ended = togi(tmp_path / "home", command, str(recipe), small)
        assert ended.returncode == 3 and "Traceback" not in ended.stderr
        assert shown in ended.stdout  # the findings are printed nevertheless
        for stage in ("reward", "policy"):
            assert f"hardware: stage {stage}: it needs" in ended.stderr
        assert togi(tmp_path / "home", command, str(recipe), "hardware=[{name: a, memory: 8}]").returncode == 0


POLICY = """\
name: policy
hardware: [{name: card, memory: 32}]
models:
  base: {path: thirteen, template: chatml}
data:
  asked: {hub: some/prompts}
stages:
  policy:
    type: train.grpo
    init: $base
    prompts: $asked
    group_size: 8
    key_cache: 7
    sampling: {max_tokens: 1024}
    reward: {gates: [{type: length, min: 1}]}
    lora: {rank: 16, alpha: 32, base: nf4}
    activation_checkpointing: true
"""
PHASES = {"load": 9.0, "sample": 17.1, "score": 17.0, "update": 13.1, "save": 9.7}


def test_a_13b_policy_fits_32_gb_phase_by_phase_as_docs_memory_says(recipe):
    path = recipe.parent / "policy.yaml"
    path.write_text(POLICY)
    found = planned(path, stage="policy")
    assert {phase: round(size / 1e9, 1) for phase, size in found.phases.items()} == PHASES
    assert found.peak_bytes == max(found.phases.values()) <= 28.8e9 and not found.problems
    row = " | ".join(f"{size}" for size in PHASES.values())
    assert f"| NF4, GB | {row} |" in (ROOT / "docs" / "memory.md").read_text()
    free = planned(path, "stages.policy.key_cache=null", stage="policy")
    assert "it fits with key_cache: 7" in free.problems[0]


def test_the_parts_of_the_13b_policy_in_docs_memory_are_computed():
    page = (ROOT / "docs" / "memory.md").read_text()
    shape = Shape.of(THIRTEEN)
    job = Job(weights="nf4", rank=16, compute_dtype="bfloat16", checkpointing=True, entropy=True, accelerator=True)
    adapter, memory = adapter_size(shape, job), predict(shape, job, 4096)
    rollouts = Rollouts(rows=64, group=8, answer=1024, prompt=1024)
    parts = {
        "matrices of the layers": shape.plain_matrices * NF4,
        "embeddings, head, norms": 2 * (shape.parameters - shape.plain_matrices),
        "adapter, and its copy for sampling": 6 * adapter,
        "moments": 8 * adapter,
        "keys of one group": one_group(shape, rollouts, 2),
        "rows of a prompt, logits": drawing(shape, rollouts.of_one(8), one_group(shape, rollouts, 2), 2),
        "gradients, activations, head, one matrix in bfloat16": memory.peak - memory.weights - memory.optimizer,
        "one matrix three times in float32": 3 * 4 * 13_824 * 5_120,
    }
    rows = {cells[1]: cells[-2] for row in page.splitlines() if len(cells := row.split("|")) > 3}
    stated = {name.strip(): value.strip() for name, value in rows.items()}
    assert {name: stated[name] for name in parts} == {name: f"{size / 1e9:.2f}" for name, size in parts.items()}
    assert f"keep {key_cache(shape, rollouts, 2) / 1e9:.1f} GB of keys" in page
    scorer = Shape.of(json.loads((ROOT / "recipes" / "shapes" / "sarashina2.2-3b.json").read_text()))
    weights, rows_ = grader_bytes([scorer_shape(scorer)], "bfloat16") / 1e9, forward_bytes(scorer, 8192, 2) / 1e9
    assert (
        f"ca-reward-3b takes {weights + rows_:.2f} GB in bfloat16,\n{weights:.2f} for its weights and {rows_:.2f} for"
        in page
    )


def test_a_judge_in_memory_counts_with_its_head_and_its_keys(recipe):
    path = recipe.parent / "policy.yaml"
    path.write_text(POLICY.replace("data:", "  judge: {path: half, template: chatml}\ndata:"))
    term = "stages.policy.reward={terms: [{type: judge, judge: $judge, max_tokens: 64}]}"
    cards = "hardware=[{name: a, memory: 80}, {name: b, memory: 80}]"
    without = planned(path, cards, stage="policy").phases
    with_judge = planned(path, cards, term, stage="policy").phases
    shape = Shape.of({**THIRTEEN, "num_hidden_layers": 16})
    weights, keys = 2 * shape.parameters, 8 * (2048 + 64) * key_bytes(shape, 2)  # the prompt as long as the answer
    for phase in ("load", "sample", "update"):
        assert with_judge[phase] - without[phase] == pytest.approx(weights), phase
    assert with_judge["score"] - without["score"] == pytest.approx(weights + keys + forward_bytes(shape, 8192, 2))
    elsewhere = planned(path, cards, "models.judge.device=cuda:1", term, stage="policy").memory
    assert elsewhere["cuda:1"] == pytest.approx(weights + keys + forward_bytes(shape, 8192, 2))
    served = "models.judge={url: 'http://127.0.0.1:9/v1', model: m}"
    assert planned(path, cards, served, term, stage="policy").phases == without
    lost = planned(path, cards, "models.judge.device=cuda:2", term, stage="policy").problems[0]
    assert "a judge is on cuda:2" in lost
