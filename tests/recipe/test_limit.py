"""A trial on few rows: which counts are adapted, and that none of its results is taken for the full one."""

from pathlib import Path
from typing import Any

from togi.data.importing import DataSpec, load_records
from togi.recipe.graph import build
from togi.recipe.limit import limited
from togi.recipe.schema import Recipe, validate
from togi.recipe.source import read_tree

RECIPE = """\
name: whole
data:
  seeds: {path: seeds.jsonl}
  few: {path: seeds.jsonl, limit: 2}
stages:
  lessons: {type: select, input: $seeds, count: 20}
  tests: {type: select, input: $seeds, skip: 20}
  wide: {type: diversify, input: $seeds, keep: 30}
  parts: {type: split, input: $seeds, parts: {train: 20, test: 5}}
  shares: {type: split, input: $few, parts: {train: 0.5, test: 0.5}}
"""


def recipe(folder: Path) -> Recipe:
    (folder / "seeds.jsonl").write_text("".join(f'{{"question": "Why {n}?"}}\n' for n in range(40)))
    (folder / "r.yaml").write_text(RECIPE)
    return validate(read_tree(folder / "r.yaml", ()))


def test_counts_follow_the_rows_and_selections_stay_apart(tmp_path: Path) -> None:
    found = limited(recipe(tmp_path), 8)
    assert found.name == "whole-limit8" and [spec.limit for spec in found.data.values()] == [8, 2]
    lessons, tests, wide, parts, shares = (each.model_dump() for each in found.stages.values())
    assert (lessons["skip"], lessons["count"], tests["skip"], tests["count"]) == (0, 4, 4, None)
    assert wide["keep"] == 4 and parts["parts"] == {"train": 2, "test": 2}
    assert shares["parts"] == {"train": 0.5, "test": 0.5}


def test_every_stage_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    whole, trial, other = (build(each) for each in (recipe(tmp_path), *(limited(recipe(tmp_path), n) for n in (8, 10))))
    marks = [{node.name: node.fingerprint for node in found.nodes.values()} for found in (whole, trial, other)]
    apart = [name for name in marks[0] if name not in ("few", "shares")]  # these two have two rows in any case
    assert all(len({found[name] for found in marks}) == 3 for name in apart)


TRAINED = """\
name: whole
models:
  base: {path: model, template: chatml}
data:
  chats: {path: seeds.jsonl}
  texts: {path: seeds.jsonl}
  pairs: {path: seeds.jsonl}
stages:
  sft: {type: train.sft, init: $base, chats: [$chats], steps: 60, batch_size: 2, warmup_steps: 12}
  long: {type: train.sft, preset: llm-jp-instruct3, init: $base, chats: [$chats], validation: 0.5}
  dpo: {type: train.dpo, init: $base, pairs: $pairs, steps: 2, warmup_steps: 1, validation: 0.2, evaluate_every: 1}
  pre: {type: train.pretrain, init: $base, sources: [&texts {documents: $texts}], tokens: 100000, max_length: 32}
  more: {type: train.pretrain, init: $base, sources: [*texts], steps: 90, batch_tokens: 64, warmup_steps: 9}
  policy:
    type: train.grpo
    init: $base
    prompts: $texts
    steps: 60
    prompts_per_step: 3
    minibatches: 2
    epochs_per_batch: 2
    warmup_steps: 10
    validation: 0.2
    evaluate_every: 20
    choose: best
    reward: {terms: [{type: overlong, max_tokens: 40, cache_tokens: 20}]}
"""


def test_training_is_as_short_as_the_rows_are_few(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TRAINED)
    whole = validate(read_tree(tmp_path / "r.yaml", ()))
    found: dict[str, Any] = dict(limited(whole, 8).stages)
    assert (found["sft"].steps, found["sft"].warmup_steps) == (4, 0)
    long = found["long"]
    assert (long.steps, long.epochs, long.warmup_steps, long.final_steps) == (None, 1.0, 0, 0)
    assert found["dpo"] == whole.stages["dpo"].model_copy(update={"steps": 1, "warmup_steps": 0})
    assert (found["pre"].tokens, found["pre"].steps) == (8 * 32, None)
    assert (found["more"].tokens, found["more"].steps, found["more"].warmup_steps) == (None, 8, 0)
    assert (found["policy"].steps, found["policy"].warmup_steps) == (8, 0)  # two batches of 6 prompts, 4 steps each
    for each in found.values():
        assert type(each).model_validate(each.model_dump(mode="json")) == each


def test_a_trial_on_more_rows_than_there_are_trains_no_longer_than_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TRAINED)
    whole = validate(read_tree(tmp_path / "r.yaml", ()))
    found = limited(whole, 10_000).stages
    same = [name for name in found if found[name] == whole.stages[name]]
    assert same == ["sft", "dpo", "pre", "more", "policy"]


def test_a_count_that_the_command_sets_stays(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TRAINED)
    given = ("stages.sft.steps=40", "stages.long.epochs=3", "stages.more.steps=70", "stages.dpo.learning_rate=0.1")
    whole = validate(read_tree(tmp_path / "r.yaml", (*given, "data.texts.limit=30")))
    trial = limited(whole, 8)
    found: dict[str, Any] = dict(trial.stages)
    assert (found["sft"].steps, found["sft"].warmup_steps) == (40, 12) and found["long"].epochs == 3
    assert (found["more"].steps, found["dpo"].steps, found["policy"].steps) == (70, 1, 8)
    assert {name: spec.limit for name, spec in trial.data.items()} == {"chats": 8, "texts": 30, "pairs": 8}


def test_a_count_beside_one_that_the_command_sets_is_lowered(tmp_path: Path) -> None:
    recipe(tmp_path)
    given = ("stages.parts.parts.train=7", "stages.lessons.count=6", "stages.tests.count=3", "stages.wide.keep=9")
    found: dict[str, Any] = dict(limited(validate(read_tree(tmp_path / "r.yaml", given)), 8).stages)
    assert found["parts"].parts == {"train": 7, "test": 2} and found["wide"].keep == 9
    assert (found["lessons"].count, found["tests"].skip, found["tests"].count) == (6, 4, 3)


def test_a_limit_counts_rows_that_fit_and_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a"}\n{"nothing": 1}\n{"question": "b"}\n{"question": "c"}\nno JSON\n')
    found = load_records(DataSpec(path=path, limit=3, on_bad_row="drop"), "prompts")
    assert [record.text for record in found.records] == ["a", "b", "c"] and len(found.drops) == 1
