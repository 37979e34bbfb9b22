"""The reference of DPO is exactly the model that a stage began with, whatever its adapter has learnt since."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_pairs import bare_context, metrics_of, pair, pairs

from togi.core.errors import StageError
from togi.core.files import read_json, read_lines
from togi.core.settings import ModelRef
from togi.core.sources import ModelSource
from togi.stages.base import MODEL_FOLDER
from togi.stages.context import Context, Resolved
from togi.stages.models import load_trainable
from togi.stages.training import dpo_work
from togi.stages.training.dpo import TrainDpo
from togi.stages.training.pairs_work import PairToExample, read_pairs
from togi.stages.training.reference_work import with_reference

LORA = {"rank": 4, "alpha": 8.0}


def settings(**more) -> TrainDpo:
    given = {"type": "train.dpo", "init": "$base", "pairs": "$pairs", "batch_size": 4, "learning_rate": 1e-2}
    return TrainDpo.model_validate({**given, **more})


def after(context: Context, folder: Path) -> Context:
    """Returns a context like `context`, but in `folder` and with the model that `context` trained as $base."""
    folder.mkdir()
    model = Resolved("model", source=ModelSource(kind="path", name=str(context.folder / MODEL_FOLDER)))
    return replace(context, folder=folder, inputs={**context.inputs, ModelRef("$base"): model})


def reference(context: Context, made: TrainDpo, *, learnt: bool) -> list[tuple[float, ...]]:
    """Returns the stored log-probabilities; with `learnt`, of an adapter with random numbers, as if much were
    learnt."""
    model = load_trainable(context, made.init, made)
    if learnt:
        torch.manual_seed(1)
        for name, param in model.net.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(param.data, std=0.5)
    data = read_pairs(made, context, PairToExample(settings=made, context=context, model=model))
    task = dpo_work.DpoTask(made, context, model, data)
    return [example.ref_logp for example in with_reference(context, task, 4096).training]


def test_an_adapter_that_has_learnt_is_switched_off(tmp_path):
    plain = reference(bare_context(tmp_path, pairs()), settings(), learnt=False)
    again = replace(bare_context(tmp_path, pairs()), folder=tmp_path / "again")
    again.folder.mkdir()
    assert reference(again, settings(lora=LORA), learnt=True) == plain


def test_after_two_lora_stages_in_a_row_it_is_the_second_ones_beginning(tmp_path):
    first = bare_context(tmp_path, pairs())
    dpo_work.run(settings(lora=LORA), first)
    plain = reference(after(first, tmp_path / "plain"), settings(), learnt=False)
    second = reference(after(first, tmp_path / "second"), settings(lora=LORA), learnt=True)
    assert second == plain
    assert second != [tuple(sums) for sums in read_json(first.folder / "units" / "reference-000000.json")]


def test_it_is_two_sums_a_pair_kept_in_units_of_fixed_size(tmp_path):
    many = [pair(f"Question {i}?", "Yes, it is.", f"No, {i}.", f"p{i}") for i in range(70)]
    context = bare_context(tmp_path, many)
    found = reference(context, settings(validation=0.1), learnt=False)
    units = [read_json(path) for path in sorted((context.folder / "units").iterdir())]
    assert [len(unit) for unit in units] == [64, 6] and len(found) == 63
    assert found == [tuple(sums) for unit in units for sums in unit][:63]
    assert all(len(sums) == 2 and max(sums) < 0 for sums in found)


def test_only_units_with_pairs_that_training_takes_are_computed(tmp_path):
    many = [pair(f"Question {i}?", "Yes, it is.", f"No, {i}.", f"p{i}") for i in range(640)]
    context = bare_context(tmp_path, many)
    dpo_work.run(settings(steps=2, batch_size=2, validation=0.01), context)
    units = [read_json(path) for path in sorted((context.folder / "units").iterdir())]
    computed = [all(map(len, unit)) for unit in units]
    assert len(units) == 10 and computed[-1], "the last unit has the pairs of the validation"
    assert sum(computed) <= 5, "4 pairs are learnt from"
    assert [unit for unit, done in zip(units, computed, strict=True) if not done] == [[[]] * 64] * (10 - sum(computed))
    first, last = (line for line in metrics_of(context.folder) if "loss" in line)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and math.isfinite(last["loss"])


def test_a_model_that_gives_no_number_is_told_before_training(tmp_path):
    context = bare_context(tmp_path, pairs())
    made = settings()
    model = load_trainable(context, made.init)
    data = read_pairs(made, context, PairToExample(settings=made, context=context, model=model))
    task = dpo_work.DpoTask(made, context, model, data)
    with torch.no_grad():
        model.net.model.norm.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="the initial model gives pair p0 log-probabilities"):
        with_reference(context, task, 4096)


def test_a_cut_into_other_micro_batches_changes_nothing_but_rounding(tmp_path):
    weights = []
    for name, budget in (("one", 4096), ("many", 64)):
        context = bare_context(tmp_path, pairs())
        context = replace(context, folder=tmp_path / name)
        context.folder.mkdir()
        dpo_work.run(settings(micro_batch_tokens=budget), context)
        weights.append([line["loss"] for line in metrics_of(context.folder)])
    assert weights[0] == pytest.approx(weights[1], rel=1e-5) and len(weights[0]) == 2


def test_chosen_answers_that_fall_are_an_alarm_or_the_end(tmp_path):
    """Under a high learning rate, chosen and rejected answers that begin alike fall together."""
    context = bare_context(tmp_path, pairs())
    falling = {"learning_rate": 0.3, "epochs": 4.0}
    guard = {"max_fall": 0.1, "window": 2}
    dpo_work.run(settings(**falling, falling_chosen=guard), context)
    alarms = [line for line in read_lines(context.folder / "alarms.jsonl") if line["name"] == "falling_chosen"]
    lines = metrics_of(context.folder)
    means = [(a["chosen_change"] + b["chosen_change"]) / 2 for a, b in pairwise(lines)]
    crossed = [step for step, mean in enumerate(means, 2) if mean < -0.1]
    assert alarms and alarms[0]["step"] == crossed[0]
    stopping = replace(bare_context(tmp_path, pairs()), folder=tmp_path / "stopping")
    stopping.folder.mkdir()
    with pytest.raises(StageError, match="stopped by a guard"):
        dpo_work.run(settings(**falling, falling_chosen={**guard, "stop": True}), stopping)
    quiet = replace(bare_context(tmp_path, pairs()), folder=tmp_path / "quiet")
    quiet.folder.mkdir()
    dpo_work.run(settings(**falling, falling_chosen=None), quiet)
    assert not (quiet.folder / "alarms.jsonl").exists()
