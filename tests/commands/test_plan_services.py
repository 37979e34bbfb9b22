"""Models that the run serves (`serve:`) count on the devices of the recipe."""

import json

import pytest
from large_shapes import THIRTEEN

from togi.cli.planned import costs
from togi.model.sizes import Shape, key_bytes
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.training.phases import forward_bytes

RECIPE = """\
name: served
hardware:
  - {name: big, memory: 80}
  - {name: small, memory: 32}
models:
  base: {path: thirteen, template: chatml}
  rm: {path: half, kind: reward, device: "cuda:1", serve: {engine: togi}}
  judge: {path: half, device: "cuda:1", template: chatml}
data:
  asked: {path: asked.jsonl}
stages:
  policy:
    type: train.grpo
    init: $base
    prompts: $asked
    sampling: {max_tokens: 64}
    key_cache: 1
    reward: {terms: [{type: model, scorer: $rm}]}
    lora: {rank: 16, base: nf4}
    activation_checkpointing: true
  said: {type: respond, prompts: $asked, models: [$judge], max_tokens: 64}
  graded: {type: score, samples: $said, scorer: $rm}
"""
LAYERS = 16
HALF = Shape.of({**THIRTEEN, "num_hidden_layers": LAYERS, "tie_word_embeddings": True})  # a reward model has no head
REWARD = 2 * HALF.parameters + forward_bytes(HALF, 8192, 2)
JUDGE = 2 * (HALF.parameters + HALF.embeddings)


@pytest.fixture
def recipe(tmp_path):
    for name, layers in (("thirteen", 40), ("half", LAYERS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**THIRTEEN, "num_hidden_layers": layers}))
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a"}\n')
    path = tmp_path / "served.yaml"
    path.write_text(RECIPE)
    return path


def planned(recipe, *overrides):
    return costs(build(validate(read_tree(recipe, overrides))), recipe.parent / "store")


def test_a_served_reward_model_takes_its_card_while_its_server_runs(recipe):
    found = planned(recipe)
    assert found["policy"].memory["cuda:1"] == found["graded"].memory["cuda:1"] == REWARD
    assert found["said"].memory == {"cuda:1": REWARD + JUDGE}  # between the first and the last stage that needs it
    assert not any(cost.problems for cost in found.values())
    alone = planned(recipe, "stages.graded=null")["said"]
    assert alone.memory == {"cuda:1": JUDGE}


def test_a_card_that_is_too_small_for_a_server_is_a_problem_of_each_stage(recipe):
    for stage, cost in planned(recipe, "hardware.1.memory=12", "models.judge.device=cuda:0").items():
        if stage == "asked":
            assert not cost.problems and not cost.memory
            continue
        (problem,) = cost.problems
        assert problem.startswith(f"{recipe}:2: hardware: stage {stage}: ")
        assert f"({REWARD / 1e9:.2f} of them for the server of rm) of small (cuda:1), which has 12 GB" in problem
    (lost,) = planned(recipe, "models.rm.device=cuda:5")["graded"].problems
    assert "the server of rm is on cuda:5, which hardware does not name" in lost


def test_a_server_on_the_trainers_card_counts_in_every_phase_and_leaves_less_for_auto(recipe):
    auto = ("stages.policy.micro_batch_tokens=auto", "hardware.0.memory=40")
    apart, beside = (planned(recipe, *auto, f"models.rm.device=cuda:{at}")["policy"] for at in (1, 0))
    assert beside.memory.keys() == {"cuda:0"}
    for phase in ("load", "sample", "score", "save"):
        assert beside.phases[phase] - apart.phases[phase] == pytest.approx(REWARD)
    assert beside.peak_bytes <= 36e9
    fits = [next(n for n in cost.notes if n.startswith("micro_batch_tokens auto")) for cost in (apart, beside)]
    assert fits[0] != fits[1]
    small = planned(recipe, "models.rm.device=cuda:0", "hardware.0.memory=20")["policy"].problems[0]
    assert "12.10 of them for the server of rm) of big (cuda:0)" in small
    assert small.endswith("or serve the model on another device")


def engine(recipe, keys):
    """Overrides with which a server samples from the policy."""
    return (
        f"models.engine={{path: {recipe.parent / 'thirteen'}, device: 'cuda:1', {keys}}}",
        "stages.policy.engine={model: $engine}",
        "stages.policy.key_cache=null",
        "hardware.1.memory=80",
    )


def test_an_engine_also_needs_room_for_its_keys(recipe):
    own = engine(recipe, "template: chatml, serve: {engine: togi}")
    found = planned(recipe, *own)["policy"]
    assert not found.phases  # the trainer's card samples nothing
    shape = Shape.of(THIRTEEN)
    for length in (64, 256):
        keys = 64 * 2 * length * key_bytes(shape, 2)  # 64 answers at once; prompts are assumed to be as long
        prompts = forward_bytes(shape, 2048 + length, 2)
        engine_card = planned(recipe, *own, f"stages.policy.sampling.max_tokens={length}")["policy"].memory["cuda:1"]
        assert engine_card == pytest.approx(2 * shape.parameters + keys + prompts + REWARD)


def test_vllm_takes_its_share_of_the_card(recipe):
    vllm = (*engine(recipe, "serve: {engine: vllm, python: /usr/bin/python3, args: []}"), "models.rm.device=cuda:0")
    share = "models.engine.serve.args=[--gpu-memory-utilization, '{}']"
    assert planned(recipe, *vllm)["policy"].memory["cuda:1"] == 0.9 * 80e9
    assert planned(recipe, *vllm, share.format(0.5))["policy"].memory["cuda:1"] == 40e9
    (little,) = planned(recipe, *vllm, share.format(0.3))["policy"].problems
    assert "the weights of engine need 27.41 GB, but its server takes only 0.3 of small (cuda:1), 24.00 GB" in little
    crowded = planned(recipe, *vllm, "models.rm.device=cuda:1")["policy"].problems
    assert any("for the servers of rm and engine) of small (cuda:1)" in each for each in crowded)


def test_a_server_that_sleeps_shares_the_trainers_card(recipe):
    vllm = (
        *engine(recipe, "serve: {engine: vllm, python: /usr/bin/python3, args: [--gpu-memory-utilization, '0.7']}"),
        "models.engine.device=cuda:0",
        "models.rm.device=cuda:1",
        "stages.policy.micro_batch_tokens=16384",
    )
    awake, asleep = (planned(recipe, *vllm, f"stages.policy.engine.sleep={told}")["policy"] for told in (False, True))
    share = 0.7 * 80e9
    assert awake.problems and not asleep.problems
    alone = awake.peak_bytes - share
    assert max(alone, share) < asleep.peak_bytes < awake.peak_bytes
    little = planned(recipe, *vllm, "stages.policy.engine.sleep=true", "models.engine.serve.args.1='0.4'")["policy"]
    assert little.peak_bytes == max(alone, asleep.peak_bytes - 0.3 * 80e9)


def test_the_type_of_a_server_is_its_own(recipe):
    wide = planned(recipe, "models.rm.serve.args=[--dtype, float32]")["graded"].memory["cuda:1"]
    assert wide == 2 * REWARD


def test_a_server_of_unknown_size_is_told(recipe):
    found = planned(recipe, "models.rm={hub: o/n, kind: reward, serve: {engine: togi}}")["graded"]
    assert any(said.startswith("memory of the server of rm: the sizes of o/n are unknown") for said in found.unknown)
    several = planned(recipe, "models.rm.serve={engine: vllm, python: p, args: [--tensor-parallel-size, '2']}")[
        "graded"
    ]
    assert "memory of the server of rm: it uses several devices (--tensor-parallel-size)" in several.unknown
    assert not several.memory
