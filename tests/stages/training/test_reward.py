"""`train.reward`: margins, adapters, the sweep, features computed once, and that scores ignore the rest of a batch."""

import gc
import json
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_pairs import pairs
from tiny_texts import bare_context

from togi.core.errors import InputError
from togi.core.records import Message, Pair
from togi.core.settings import ModelRef, PairsRef
from togi.core.sources import ModelSource
from togi.model.load import load
from togi.model.reward_model import ModelScorer, load_reward_model
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context
from togi.stages.training import reward_work
from togi.stages.training.examples_work import Example
from togi.stages.training.fit_work import micro_batches
from togi.stages.training.memory_work import MemoryBudget
from togi.stages.training.reward import TrainReward, job
from togi.stages.training.reward_work import PairToTexts, SharedBody, read_pairs

LEARNS = {"batch_size": 3, "steps": 8, "learning_rate": 3e-3, "schedule": "constant"}


def settings(**given) -> TrainReward:
    return TrainReward(init=ModelRef("$base"), pairs=PairsRef("$pairs"), **given)


def reward(folder: Path, given: list[Pair] | None = None, **more) -> Context:
    context = bare_context(folder, pairs=given or pairs())
    reward_work.run(settings(**more), context)
    return context


def lines_of(context: Context) -> list[dict]:
    return [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]


def rows_of(context: Context) -> dict[str, float]:
    return {row["metric"]: row["policy"]["mean"] for row in context.summary["table"]}


def saved_accuracy(context: Context, given: list[Pair]) -> float:
    """Returns the accuracy of the saved model, loaded as by any user, one conversation at a time."""
    source = ModelSource(kind="path", name=str(context.folder / MODEL_FOLDER))
    scorer = ModelScorer(load_reward_model(source, context.cache))
    sides = [[scorer.score([(p.prompt, side[0].content)])[0] for p in given for side in (p.chosen, p.rejected)]]
    return sum(a > b for a, b in zip(sides[0][0::2], sides[0][1::2], strict=True)) / len(given)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"lora": {"rank": 4, "alpha": 8}},
        {"lora": {"rank": 4, "alpha": 8}, "head_learning_rate": 0.1},
        {"train_layers": 1},
        {"train_layers": 0, "head_learning_rate": 0.1},
    ],
)
def test_every_way_of_training_learns_and_saves_what_it_measured(tmp_path, how):
    every = pairs()
    context = bare_context(tmp_path, pairs=every[:6], more_pairs=every[6:])
    rate = 3e-2 if how else 3e-3
    made = settings(validation=PairsRef("$more_pairs"), **{**LEARNS, "learning_rate": rate}, **how)
    reward_work.run(made, context)
    lines = lines_of(context)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert rows_of(context)["accuracy on held-out pairs"] == lines[-1]["validation/accuracy"]
    assert saved_accuracy(context, every[6:]) == lines[-1]["validation/accuracy"]


def test_the_head_is_trained_whole_beside_an_adapter(tmp_path):
    context = bare_context(tmp_path, pairs=pairs())
    model = load(context.model(ModelRef("$base")), context.cache)
    made = settings(lora={"rank": 2, "targets": ["q_proj"]}, head_learning_rate=0.5)
    data = read_pairs(made, context, model)
    scorer, task = SharedBody(made, context, model, data).scorer(data)
    names = [name for name, p in scorer.net.named_parameters() if p.requires_grad]
    heads = [name for name in names if "score" in name]
    assert len(heads) == 1 and task.rates() == {heads[0]: 0.5}
    assert all("lora" in name for name in names if name not in heads)


def test_a_margin_is_subtracted_and_must_be_there(tmp_path):
    with pytest.raises(InputError, match="pair p0 has no margin"):
        reward(tmp_path / "none", margin=True, validation=None)
    marked = [replace(p, margin=2.0) for p in pairs()]
    with_margin = lines_of(reward(tmp_path / "with", marked, margin=True, validation=None, **LEARNS))
    without = lines_of(reward(tmp_path / "without", marked, validation=None, **LEARNS))
    assert with_margin[0]["loss"] > without[0]["loss"] + 1
    assert with_margin[-1]["margin"] > without[-1]["margin"]


def test_centring_pulls_the_scores_to_zero(tmp_path):
    """The scores of a pair begin at 2.6 in sum with this head. After three steps: 2.4 without centring, 0.2 with it."""

    def middle(folder: str, centring: float) -> list[float]:
        given = {**LEARNS, "batch_size": 8, "steps": 3, "train_layers": 0, "learning_rate": 3e-2}
        lines = lines_of(reward(tmp_path / folder, validation=None, centring=centring, **given))
        return [abs(line["score_chosen"] + line["score_rejected"]) for line in lines]

    off, strong = middle("off", 0.0), middle("strong", 1.0)
    assert strong[0] == off[0] > 2
    assert strong[-1] < 0.25 * off[-1]


def test_what_teaches_nothing_is_dropped_for_the_reasons_of_every_training_on_pairs(tmp_path):
    first = pairs()[0]
    silent = (Message("assistant", " \n"),)
    bad = [replace(first, id="same", rejected=first.chosen), replace(first, id="empty", rejected=silent)]
    context = reward(tmp_path / "drop", [*pairs(), *bad], validation=None, steps=1)
    assert [(drop.id, drop.reason) for drop in context.drops] == [("same", "equal_answers"), ("empty", "empty_answer")]
    with pytest.raises(InputError, match="pair same cannot be trained on: its answers are the same"):
        reward(tmp_path / "error", [*pairs(), *bad], validation=None, steps=1, on_bad_pair="error")


def test_a_text_that_begins_with_two_bos_is_dropped(tmp_path):
    context = bare_context(tmp_path, pairs=pairs(), template="llm-jp")
    model = load(context.model(ModelRef("$base")), context.cache)
    reader = PairToTexts(settings=settings(), context=context, model=model)
    assert isinstance(reader(pairs()[0]), Example)
    twice = model.template.from_json({**model.template.to_json(), "bos": "<s><s>"})
    reader.model = replace(model, template=twice)
    assert reader(pairs()[0]) == "two_bos"


@pytest.mark.parametrize("budget", [64, 150, 4096])
def test_the_score_of_a_text_does_not_depend_on_its_neighbours(tmp_path, budget):
    context = bare_context(tmp_path, pairs=pairs())
    model = load(context.model(ModelRef("$base")), context.cache, dtype=torch.float64)
    made = settings(validation=None)
    data = read_pairs(made, context, model)
    _, task = SharedBody(made, context, model, data).scorer(data)

    def scores(examples) -> dict[str, torch.Tensor]:
        found = {}
        for part, micro in micro_batches(task, examples, budget):
            pieces = task.forward(task.module, micro.inputs).score_S.detach().split(2)
            found.update({e.id: piece for e, piece in zip(part, pieces, strict=True)})
        return found

    together, turned = scores(data.training), scores(data.training[::-1])
    for one in data.training:
        alone = scores([one])[one.id]
        torch.testing.assert_close(together[one.id], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(turned[one.id], alone, rtol=0, atol=1e-12)


def test_what_a_frozen_trunk_says_is_computed_once(tmp_path, monkeypatch):
    """Each text goes through the layers once, even with a control and held-out scores."""
    seen: Counter[int] = Counter()
    plain = reward_work.hidden_states

    def counted(net, forest):
        seen["sequences"] += forest.num_sequences
        return plain(net, forest)

    monkeypatch.setattr(reward_work, "hidden_states", counted)
    reward(tmp_path, train_layers=0, shuffled_control=True, validation=0.3, **LEARNS)
    assert seen["sequences"] == 2 * len(pairs())


@pytest.mark.parametrize(("layers", "told"), [(0, False), (1, True)])
def test_progress_tells_no_rate_of_tokens_where_none_are_computed(tmp_path, layers, told):
    context, notes = bare_context(tmp_path, pairs=pairs()), []
    context.control.send = lambda event: notes.append(event.get("note", ""))
    reward_work.run(settings(train_layers=layers, **LEARNS), context)
    steps = [note for note in notes if "loss" in note]
    assert len(steps) == LEARNS["steps"] and all(("tokens/s" in note) is told for note in steps)


def test_all_trainings_of_a_stage_are_counted_and_their_alarms_are_kept(tmp_path):
    context = bare_context(tmp_path, pairs=pairs(), more_pairs=pairs()[:2])
    more = {"validation": PairsRef("$more_pairs"), "sweep": (1e-4, 1e-3), "shuffled_control": True}
    made = settings(**{key: value for key, value in LEARNS.items() if key != "learning_rate"}, **more)
    fit = MemoryBudget(job(made), context)
    reward_work.run(fit.settings, context)
    fit.finish()
    told = [json.loads(line) for line in (context.folder / "alarms.jsonl").read_text().splitlines()]
    assert [alarm["name"] for alarm in told] == ["validation_overlap"]
    one = sum(line["num_tokens"] for line in lines_of(context))
    memory = json.loads((context.folder / "memory.json").read_text())
    assert memory["tokens"] == 3 * one  # the control trains on the same texts
    assert not list(context.folder.glob("runs/*/checkpoints"))


def test_a_training_of_a_sweep_begins_when_the_model_of_the_one_before_is_gone(tmp_path, monkeypatch):
    load, made, held = reward_work.load_trunk, [], []

    def watched(settings, context):
        held.append(sum(each() is not None for each in made))
        model = load(settings, context)
        made.append(weakref.ref(model.net.get_input_embeddings().weight))
        return model

    monkeypatch.setattr(reward_work, "load_trunk", watched)
    given = {key: value for key, value in LEARNS.items() if key != "learning_rate"}
    reward(tmp_path, sweep=(1e-4, 1e-3, 1e-2), validation=0.3, **given)
    assert held == [0, 0, 0]


def test_the_next_load_of_a_sweep_finds_memory_given_back(tmp_path, monkeypatch):
    """A model in a circle of references is freed only by the collector, which the stage must call before it loads."""
    load, made, held = reward_work.load_trunk, [], []

    def watched(settings, context):
        held.append(sum(each() is not None for each in made))
        model = load(settings, context)
        made.append(weakref.ref(model.net))
        model.net.circle = [model.net]
        return model

    def made_and_dropped(body, data):
        scorer = body.scorer(data)
        del scorer
        gc.disable()  # by itself it may run at any time

    monkeypatch.setattr(reward_work, "load_trunk", watched)
    context = bare_context(tmp_path, pairs=pairs())
    wanted = settings(**LEARNS)
    first = watched(wanted, context)
    data = read_pairs(wanted, context, first)
    body = SharedBody(wanted, context, first, data)
    del first
    try:
        for _ in range(3):
            made_and_dropped(body, data)
    finally:
        gc.enable()
    assert held == [0, 0, 0]


def test_a_sweep_keeps_the_rate_that_is_most_accurate(tmp_path):
    rates = (1e-7, 1e-2)
    given = {key: value for key, value in LEARNS.items() if key != "learning_rate"}
    context = reward(tmp_path / "sweep", sweep=rates, validation=0.3, **given)
    found = rows_of(context)
    assert list(found) == ["accuracy at learning rate 1e-07", "accuracy at learning rate 0.01"]
    best = max(rates, key=lambda rate: found[f"accuracy at learning rate {rate:g}"])
    assert context.summary["learning_rate"] == best
    single = reward(tmp_path / "single", learning_rate=best, validation=0.3, **given)
    weights = f"{MODEL_FOLDER}/model.safetensors"
    assert (context.folder / weights).read_bytes() == (single.folder / weights).read_bytes()
    assert [line["loss"] for line in lines_of(context)] == [line["loss"] for line in lines_of(single)]
    assert not list(context.folder.glob("runs/*/model")) and not list(context.folder.glob("runs/*/checkpoints"))
