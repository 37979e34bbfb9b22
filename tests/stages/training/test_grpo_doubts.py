"""Alarms of `train.grpo` about settings that are hardly ever meant, and about rewards that teach to fail a gate."""

from pathlib import Path

import pytest
from grpo_runs import Bench, lines, prompts

from togi.core.codec import write_records
from togi.core.records import Message, Prompt
from togi.stages.base import RECORDS_FILE
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_doubts import doubts
from togi.stages.training.grpo_work import rehearse

BASE = {"init": "$base", "prompts": "$prompts", "reward": {"gates": [{"type": "terminator"}]}}
GSPO = {"type": "grpo", "level": "sequence", "eps": 3e-4, "eps_high": 4e-4}
LENGTH, WIDTH = "weights each answer by its length", "eps: 0.2 is the width for single tokens"


def told(**more) -> dict[str, str]:
    return dict(doubts(TrainGrpo.model_validate({**BASE, "steps": 4, **more})))


@pytest.mark.parametrize(
    ("loss", "minibatches", "wanted"),
    [
        ({}, 2, []),
        (GSPO, 2, []),
        ({"level": "sequence"}, 2, [LENGTH, WIDTH]),
        ({"level": "sequence"}, 1, [LENGTH]),  # the ratio is 1, and nothing is clipped
        ({**GSPO, "type": "dapo"}, 2, [LENGTH]),
        ({"type": "grpo", "level": "sequence"}, 2, [WIDTH]),
        ({"type": "luspo", "level": "sequence"}, 2, [WIDTH]),
        ({"type": "cispo", "level": "sequence"}, 2, [LENGTH]),
        ({"type": "sapo", "level": "sequence"}, 2, []),
    ],
)
def test_a_sequence_level_ratio_that_is_not_gspo_is_told(loss, minibatches, wanted):
    message = told(loss=loss, minibatches=minibatches).get("sequence_level", "")
    assert [part for part in (LENGTH, WIDTH) if part in message] == wanted and bool(message) == bool(wanted)


def test_the_settings_that_message_names_are_accepted_in_silence():
    message = told(loss={"level": "sequence"}, epochs_per_batch=2)["sequence_level"]
    assert all(name in message for name in ("type: grpo", "eps: 3.0e-4", "eps_high: 4.0e-4"))
    assert told(loss=GSPO, epochs_per_batch=2) == {}


def test_truncated_sampling_is_told():
    assert told() == {} and "top_p, min_p truncates" in told(sampling={"top_p": 0.9, "min_p": 0.1})["biased_sampling"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("doubts"))
    (bench.folder / "below.py").write_text(
        "def below(prompt, completion):\n    return -20.0\n\n"
        "def applies(prompts, completions, **columns):\n"
        "    return [None if i == 0 else float(i) for i in range(len(completions))]\n"
    )
    return bench


def term(bench: Bench, name: str, **more) -> dict:
    return {"type": "function", "file": str(bench.folder / "below.py"), "name": name, **more}


def alarms(folder: Path, name: str) -> list[dict]:
    file = folder / "alarms.jsonl"
    return [row for row in lines(folder, "alarms.jsonl") if row["name"] == name] if file.exists() else []


def test_check_and_the_start_of_training_tell_the_same(bench):
    settings = bench.settings(loss={"level": "sequence"}, steps=1)
    context = bench.context("rehearsed")
    list(rehearse(settings, context))
    ended = bench.run("started", settings)
    assert len(alarms(ended, "sequence_level")) == 1
    assert alarms(context.folder, "sequence_level") == alarms(ended, "sequence_level")


def test_prompts_whose_system_turn_the_policy_does_not_see_are_told(tmp_path):
    bench = Bench(tmp_path)
    turns = [[Message("user", "Why?")], [Message("system", "Be a pirate."), Message("user", "Why?")]]
    asked = [Prompt(id=f"s{i}", messages=tuple(each)) for i, each in enumerate(turns)]
    write_records(tmp_path / "prompts" / RECORDS_FILE, "prompts", asked)
    bench.template = "llm-jp"
    context, settings = bench.context("rehearsed"), bench.settings(steps=1)
    list(rehearse(settings, context))
    ended = bench.run("started", settings)
    (told,) = alarms(ended, "system_replaced")
    assert alarms(context.folder, "system_replaced") == [told]
    assert told["message"] == (
        "template 'llm-jp' does not write the system turn of 1 records, but its own text or none, so the policy does "
        "not see it; to show it, choose template: llm-jp-system"
    )
    bench.template = "llm-jp-system"
    list(rehearse(settings, other := bench.context("other")))
    assert not alarms(other.folder, "system_replaced")


GUARD = {"metric": "below_fail_share", "max": 1.0}


@pytest.mark.parametrize(
    ("more", "count"), [({}, 1), ({"floor": True}, 0), ({"guards": [GUARD]}, 0)], ids=["plain", "floor", "guarded"]
)
def test_answers_that_pass_below_those_that_fail_are_told_once(bench, more, count):
    gates = [{"type": "length", "min": 1, "bonus": 6.0}]
    reward = {"gates": gates, "terms": [term(bench, "below")], "floor": more.get("floor", False)}
    settings = bench.settings(reward=reward, guards=more.get("guards", []), steps=3, save_every=1)
    folder = bench.run(f"below-{len(more)}-{count}-{'floor' in more}", settings)
    found = alarms(folder, "below_fail_share")
    assert [row["below_fail_share"] > 0 for row in lines(folder)] == [True] * 3
    assert len(found) == count and all("set reward.floor: true" in row["message"] for row in found)


def test_the_alarm_is_not_repeated_by_a_resumed_stage(bench):
    settings = bench.settings(reward={"gates": [{"type": "length"}], "terms": [term(bench, "below")]})
    work = bench.at_work(settings)
    work.told_below = True
    other = bench.at_work(settings)
    other.restore(work.state())
    assert other.told_below


def test_a_sample_without_a_reward_is_left_out_of_its_group_and_of_the_loss(bench):
    settings = bench.settings(reward={"terms": [term(bench, "applies", style="trl")]}, steps=1)
    work = bench.at_work(settings)
    (micro, *_) = next(work.steps(0))
    for group in work.made.groups:
        assert [answer.counts for answer in group] == [False, True, True, True]
        assert group[0].advantage is None and sum(answer.advantage or 0.0 for answer in group) == pytest.approx(0)
    assert micro.batch.num_sequences + micro.batch.idle_sequences <= 2 * 3
    again = bench.at_work(settings)
    again.rollouts.stored.folder = work.rollouts.stored.folder
    (graded, *_) = again.rollouts.stored.replay("batch-000000-000", [g[0].prompt for g in work.made.groups])
    assert graded[0][1].total is None and graded[0][1].failed is None and len(prompts()) > 2
