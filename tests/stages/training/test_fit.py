"""Training on fixed data: splits, order, contradictory settings, the best weights."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_texts import bare_context, chat, chats

from togi.core.errors import InputError, Interrupted, StageError
from togi.core.settings import ChatsRef, ModelRef
from togi.model.forest import Sequence
from togi.stages.context import Context
from togi.stages.data.synthesize import Synthesize
from togi.stages.training import sft_work
from togi.stages.training.examples_work import Example, ShuffledEpochs, split
from togi.stages.training.fit_work import tell_long_warmup, tell_lost_decay
from togi.stages.training.pretrain import TrainPretrain
from togi.stages.training.reward import TrainReward
from togi.stages.training.sft import TrainSft

BASE = {"init": ModelRef("$base"), "chats": ChatsRef("$chats")}


def example(number: int, prompt: str = "") -> Example:
    return Example(id=f"e{number}", prompt=prompt or f"p{number}", group=(Sequence((1, 2), (False, True)),))


# --- splits and order -------------------------------------------------------------------------------------------------


def test_examples_of_one_prompt_stand_on_one_side():
    every = [example(i, prompt=f"p{i % 7}") for i in range(40)]
    training, held = split(every, 0.3, seed=3, name="x")
    assert {e.prompt for e in training}.isdisjoint(e.prompt for e in held)
    assert len({e.prompt for e in held}) == 2
    assert sorted(e.id for e in training + held) == sorted(e.id for e in every)
    assert split(every, 0.3, seed=4, name="x")[1] != held


@pytest.mark.parametrize(
    ("count", "share", "message"),
    [
        (1, 0.1, "1 different prompt, but training and validation need 2 each; provide at least 4, or remove `valid"),
        (3, 0.5, "3 different prompts, but training and validation need 2 each; provide at least 4, or remove `vali"),
        (5, 0.9, "a share of 0.9 of 5 different prompts leaves 1 to train on, which needs 2; lower the share, provide"),
    ],
)
def test_too_few_prompts_cannot_be_split(count, share, message):
    with pytest.raises(InputError, match=message):
        split([example(i) for i in range(count)], share, seed=0, name="x")


@pytest.mark.parametrize(
    ("settings", "steps", "last"), [({"epochs": 2.5}, 7, 1), ({"steps": 4}, 4, 4), ({}, 3, 2), ({"epochs": 0.01}, 1, 1)]
)
def test_epochs_are_laid_end_to_end_and_follow_from_the_step(settings, steps, last):
    every = [example(i) for i in range(10)]
    source = ShuffledEpochs(TrainSft(**BASE, batch_size=4, **settings), every, seed=1)
    assert source.total_steps == steps
    taken = [source.take(step) for step in range(steps)]
    assert [len(part) for part in taken] == [4] * (steps - 1) + [last]
    ids = [e.id for part in taken for e in part]
    whole = ids[:10]
    if len(ids) >= 10:
        assert sorted(whole) == sorted(e.id for e in every) and whole != [e.id for e in every]
    again = ShuffledEpochs(TrainSft(**BASE, batch_size=4, **settings), every, seed=1)
    assert again.take(steps - 1) == taken[-1]  # without taking the steps before it


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (TrainSft, {"choose": "best"}, "choose needs validation"),
        (TrainSft, {"evaluate_every": 5}, "evaluate_every needs validation"),
        (TrainSft, {"validation": 0.1, "choose": "best"}, "choose: best needs evaluate_every"),
        (TrainSft, {"validation": 0.1, "choose_by": "accuracy"}, "measures loss, not accuracy"),
        (TrainSft, {"steps": 5, "epochs": 2}, "keep one of them"),
        (TrainSft, {"schedule": "constant", "final_rate": 0.1}, "final_rate does nothing"),
        (TrainSft, {"system_when": "always"}, "needs `system`"),
        (TrainSft, {"packing": "blocks", "overflow": "error"}, "overflow does nothing"),
        (TrainSft, {"preset": "llm-jp"}, "llm-jp-instruct3"),
        (TrainSft, {"validation": 1.0}, "less than 1"),
        (TrainSft, {"epochs": 0}, "greater than 0"),
        (TrainReward, {"sweep": [1e-5]}, "two or more different learning rates"),
        (TrainReward, {"sweep": [1e-5, 1e-4], "validation": None}, "sweep needs validation"),
        (TrainReward, {"sweep": [1e-5, 1e-4], "learning_rate": 1e-3}, "keep one of them"),
        (TrainReward, {"lora": {"rank": 4}, "train_layers": 0}, "keep one of them"),
        (TrainReward, {"shuffled_control": True, "validation": None}, "shuffled_control needs validation"),
        (TrainPretrain, {"tokens": 10, "steps": 3}, "either tokens or steps"),
        (TrainPretrain, {}, "either tokens or steps"),
        (TrainPretrain, {"steps": 3, "betas": [0.9, 1.5]}, "less than 1"),
        (TrainPretrain, {"steps": 3, "sources": [{"documents": "$x"}, {"documents": "$x"}]}, "is listed twice"),
        (TrainPretrain, {"steps": 3, "sources": [{"documents": "$x", "chats": "$y"}]}, "documents or chats"),
        (Synthesize, {"min_chars": 20, "max_chars": 10}, "no draft could pass"),
    ],
)
def test_contradictions_are_refused_before_anything_loads(cls, settings, message):
    given = {
        TrainSft: {"init": "$base", "chats": "$c"},
        TrainReward: {"init": "$base", "pairs": "$p"},
        TrainPretrain: {"init": "$base", "sources": [{"chats": "$c"}]},
        Synthesize: {"model": "$base", "examples": "$e", "count": 8},
    }
    with pytest.raises(ValidationError, match=message):
        cls.model_validate({**given[cls], **settings})


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (TrainSft, {"preset": "vikhr-nemo-sft", "chats": "$c", "lora": None, "steps": 30}),
        (TrainSft, {"preset": "llm-jp-instruct3", "chats": "$c", "learning_rate": 1e-4}),
        (TrainReward, {"preset": "ca-reward-3b", "pairs": "$p"}),
        (TrainReward, {"sweep": [1e-5, 1e-4], "pairs": "$p"}),
        (TrainPretrain, {"sources": [{"documents": "$d"}], "steps": 3}),
    ],
)
def test_settings_mean_the_same_when_they_are_written_out_and_read_again(cls, settings):
    """The runner passes them to the worker in this form."""
    made = cls.model_validate({"init": "$base", **settings})
    assert cls.model_validate(json.loads(made.model_dump_json())) == made


def test_a_preset_is_changed_key_by_key():
    made = TrainSft.model_validate({**BASE, "preset": "vikhr-nemo-sft", "lora": {"rank": 8}, "steps": 30})
    assert (made.score_header, made.lora.rank, made.lora.alpha, made.epochs) == (True, 8, 256.0, None)
    assert "lm_head" in made.lora.targets


def test_an_example_that_the_memory_has_no_room_for_is_an_error_before_the_first_step(tmp_path):
    context = bare_context(tmp_path, chats=[*chats(), chat(("user", "Why?"), ("assistant", "So. " * 40), name="long")])
    context.fits = 100  # the limit that `auto` found
    with pytest.raises(StageError, match=r"the longest example has 1\d\d tokens, but .* micro-batch of 100 tokens"):
        sft_work.run(TrainSft(**BASE, steps=1), context)
    assert not (context.folder / "metrics.jsonl").exists()
    context.fits = 256
    sft_work.run(TrainSft(**BASE, steps=1), context)


def test_under_blocks_a_chat_to_validate_on_may_not_be_too_long_either(tmp_path):
    def held_out(folder: str, *lengths: int) -> Context:
        others = [chat(("user", "Why?"), ("assistant", "So. " * n), name=f"v{n}") for n in lengths]
        context = bare_context(tmp_path / folder, chats=chats(), more_chats=others)
        made = TrainSft(**BASE, steps=1, packing="blocks", max_length=100, validation=ChatsRef("$more_chats"))
        sft_work.run(made, context)
        return context

    context = held_out("some", 2, 90)
    assert context.counts["held_out"] == 1
    assert [(drop.id, drop.reason) for drop in context.drops] == [("v90", "too_long")]
    with pytest.raises(InputError, match="none of the 1 validation chats fits into 100 tokens"):
        held_out("none", 90)


# --- the best weights -------------------------------------------------------------------------------------------------


def sft(
    folder: Path, stop_after: int = 0, told: list[str] | None = None, **settings
) -> tuple[list[dict], dict[str, torch.Tensor], dict]:
    """Trains the tiny model, which is asked to stop after some steps; returns metrics, weights and summary. `told`
    takes what was logged."""
    other = chat(("user", "Why is the sky blue?"), ("assistant", "Zebra quartz 77 XY"), name="v0")
    context = bare_context(folder, chats=chats(), more_chats=[other])

    def stop(event: dict) -> None:
        if event["event"] == "progress" and event["done"] == stop_after:
            context.control.stop = True
        if event["event"] == "log" and told is not None:
            told.append(event["message"])

    context.control.send = stop
    made = TrainSft(**BASE, batch_size=2, micro_batch_tokens=128, **settings)
    sft_work.run(made, context)
    lines = [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
    return lines, load_file(context.folder / "output" / "model" / "model.safetensors"), context.summary


BEST = {
    "validation": ChatsRef("$more_chats"),
    "evaluate_every": 1,
    "schedule": "constant",
    "learning_rate": 1e-2,
    "save_every": 1,
    "keep": 1,
}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory):
    return sft(tmp_path_factory.mktemp("best"), steps=8, choose="best", **BEST)


def test_best_keeps_the_weights_of_the_best_validation(best, tmp_path):
    lines, weights, summary = best
    losses = [line["validation/loss"] for line in lines]
    number = losses.index(min(losses)) + 1
    assert 1 < number < 8  # validation got worse again, so the best step is not the last
    assert (summary["step"], summary["validation"]["validation/loss"]) == (number, min(losses))
    assert same(weights, sft(tmp_path / "short", steps=number, **BEST)[1])
    last = sft(tmp_path / "last", steps=8, **BEST)
    assert not same(weights, last[1])
    assert [line["loss"] for line in last[0]] == [line["loss"] for line in lines]


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_the_best_weights_survive_a_stop_and_pruning(best, tmp_path, stop_after):
    with pytest.raises(Interrupted):
        sft(tmp_path, stop_after=stop_after, steps=8, choose="best", **BEST)
    lines, weights, summary = sft(tmp_path, steps=8, choose="best", **BEST)
    assert same(weights, best[1]) and summary == best[2]
    assert [line["validation/loss"] for line in lines] == [line["validation/loss"] for line in best[0]]


def test_the_step_whose_weights_are_kept_is_told_if_it_is_not_the_last(best, tmp_path):
    number, value = best[2]["step"], best[2]["validation"]["validation/loss"]
    for steps, count in ((8, 1), (number, 0)):
        told: list[str] = []
        sft(tmp_path / str(steps), told=told, steps=steps, choose="best", **BEST)
        kept = [line for line in told if line.startswith("kept the weights")]
        words = f"kept the weights of step {number} of 8, which has the best validation: loss {value:.4g}"
        assert kept == [words] * count


def test_validation_changes_no_bit_of_the_training(best, tmp_path):
    settings = {key: value for key, value in BEST.items() if key not in ("validation", "evaluate_every")}
    lines, _, _ = sft(tmp_path, steps=8, **settings)
    assert [line["loss"] for line in lines] == [line["loss"] for line in best[0]]


def test_an_overlap_of_validation_and_training_is_an_alarm(tmp_path):
    records = chats()
    context = bare_context(tmp_path, chats=records, more_chats=records[:3])
    settings = TrainSft(**BASE, batch_size=4, steps=1, validation=ChatsRef("$more_chats"))
    sft_work.run(settings, context)
    (alarm,) = [json.loads(line) for line in (context.folder / "alarms.jsonl").read_text().splitlines()]
    assert alarm["name"] == "validation_overlap" and alarm["message"].startswith("3 of 3")


@pytest.mark.parametrize(
    ("warmup", "told"),
    [(4, ""), (5, "reaches 1e-05 only at step 5; lower warmup_steps, for example to 1"), (20, "never reaches 1e-05")],
)
def test_a_warm_up_of_half_of_the_steps_is_an_alarm(tmp_path, warmup, told):
    context = bare_context(tmp_path, chats=chats())
    tell_long_warmup(TrainSft(**BASE, warmup_steps=warmup), context, 10)
    file = context.folder / "alarms.jsonl"
    assert file.exists() == bool(told) and (not told or told in json.loads(file.read_text())["message"])


@pytest.mark.parametrize(("final", "told"), [(5, False), (9, True), (20, True)])
def test_final_steps_that_leave_no_decay_are_an_alarm(tmp_path, final, told):
    context = bare_context(tmp_path, chats=chats())
    tell_lost_decay(TrainSft(**BASE, warmup_steps=1, final_rate=0.1, final_steps=final), context, 10)
    file = context.folder / "alarms.jsonl"
    assert file.exists() == told and (not told or "leave none for the cosine decay" in file.read_text())


def test_training_tells_a_long_warm_up(tmp_path):
    context = bare_context(tmp_path, chats=chats())
    sft_work.run(TrainSft(**BASE, batch_size=4, steps=1, warmup_steps=10), context)
    assert json.loads((context.folder / "alarms.jsonl").read_text())["name"] == "long_warmup"


def test_nothing_to_train_on_says_so(tmp_path):
    context = bare_context(tmp_path, chats=chats())
    with pytest.raises(InputError, match="every record was dropped"):
        sft_work.run(TrainSft(**BASE, max_length=8), context)
    with pytest.raises(InputError, match="max_length is 9999, but the model's context is 256"):
        sft_work.run(TrainSft(**BASE, max_length=9999), context)


def test_a_final_rate_is_reached_and_kept(tmp_path):
    lines, _, _ = sft(
        tmp_path, steps=8, learning_rate=1e-3, schedule="cosine", warmup_steps=2, final_rate=0.1, final_steps=3
    )
    rates = [line["learning_rate"] for line in lines]
    assert rates[:3] == pytest.approx([0.5e-3, 1e-3, 1e-3]) and rates[5:] == pytest.approx([1e-4] * 3)
    assert rates[3] > rates[4] > rates[5]
