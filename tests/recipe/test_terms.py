"""The licences, terms and uses found in a recipe's graph before anything runs."""

import json
from pathlib import Path

import pytest

from togi.core.errors import RecipeError
from togi.recipe.graph import Graph, build
from togi.recipe.lock import lock_text
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.recipe.terms import notes, refuse_misuse, terms_by_stage

RECIPE = """\
name: terms
models:
  base: {hub: g/emma, licence: gemma, terms: no harm}
data:
  seeds: {path: rows.jsonl, licence: CC0}
  safe: {path: rows.jsonl, licence: CC-BY, terms: for safety only, inherit: true%(use)s}
stages:
  some: {type: select, input: $safe}
  pairs: {type: contrast, input: $some, model: $base}
  reward: {type: train.reward, init: $base, pairs: $pairs}
  scores: {type: evaluate, base: $base, policy: $base, reward: $reward, prompts: $seeds}
%(more)s"""


def graph(folder: Path, use: str = "", more: str = "") -> Graph:
    (folder / "rows.jsonl").write_text(json.dumps({"question": "Why?"}))
    (folder / "r.yaml").write_text(RECIPE % {"use": use and f", use: {use}", "more": more})
    return build(validate(read_tree(folder / "r.yaml")))


def test_the_lock_names_what_reaches_each_stage(tmp_path: Path) -> None:
    made = graph(tmp_path)
    bound = {"from": "data.safe", "licence": "CC-BY", "terms": "for safety only", "binds": True}
    model = {"from": "models.base", "licence": "gemma", "terms": "no harm", "binds": True}
    assert terms_by_stage(made) == {
        "safe": [bound],
        "some": [bound],
        "pairs": [bound, model],
        "reward": [model, bound],
        "seeds": [{"from": "data.seeds", "licence": "CC0", "terms": None, "binds": False}],
        "scores": [model, {"from": "data.seeds", "licence": "CC0", "terms": None, "binds": False}, bound],
    }
    assert "for safety only" in lock_text(made).partition("\nterms:")[2]
    assert notes(made) == [
        "models.base: its terms (gemma, no harm) bind what is made from it: pairs, reward, scores",
        "data.safe: its terms (CC-BY, for safety only) bind what is made from it: some, pairs, reward, scores",
    ]


def test_what_is_for_evaluation_is_not_trained_on_and_the_way_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        refuse_misuse(graph(tmp_path, use="evaluation"))
    assert str(raised.value) == (
        f"{tmp_path / 'r.yaml'}:10: stages.reward.pairs: data.safe is for evaluation only (use: evaluation), but "
        "would be trained on: safe -> some -> pairs -> reward. Train on other data, or set use: any in data.safe"
    )


def test_what_is_for_evaluation_may_validate_and_be_measured_on(tmp_path: Path) -> None:
    more = "  sft: {type: train.reward, init: $base, pairs: $mine, validation: $held}\n"
    more += "  mine: {type: contrast, input: $seeds, model: $base}\n"
    more += "  held: {type: contrast, input: $bench, model: $base}\n"
    more += "  seen: {type: evaluate, base: $base, policy: $base, reward: $sft, prompts: $bench}\n"
    more += "data: {bench: {path: rows.jsonl, use: evaluation}, seeds: {path: rows.jsonl}}\n"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Why?"}))
    text = "name: x\nmodels: {base: {hub: g/emma}}\nstages:\n" + more
    (tmp_path / "r.yaml").write_text(text)
    made = build(validate(read_tree(tmp_path / "r.yaml")))
    refuse_misuse(made)
    assert notes(made) == []


def test_an_evaluation_on_what_was_trained_on_is_told(tmp_path: Path) -> None:
    more = (
        "  tuned: {type: train.grpo, init: $base, prompts: $some, reward: {terms: [{type: model, scorer: $reward}]}}\n"
    )
    more += "  again: {type: evaluate, base: $base, policy: $tuned, prompts: $some}\n"
    found = notes(graph(tmp_path, use="training", more=more))[2:]
    assert found == [
        "stages.again.prompts: tuned is trained on $some, so its figures do not hold for data that the model has "
        "not seen; keep records apart for it with `split` or `select`",
        "stages.again.prompts: data.safe is for training (use: training), but is evaluated on: safe -> some -> again",
    ]


TERMS = "licence: CC-X, terms: secret, inherit: true"


def imported(folder: Path, use: str) -> Graph:
    """A recipe that trains and measures on an `import` stage of its own."""
    (folder / "chats.jsonl").write_text(json.dumps({"prompt": "Why?", "completion": "Because."}))
    (folder / "r.yaml").write_text(
        "name: x\nmodels: {base: {hub: g/emma}}\nstages:\n"
        f"  own: {{type: import, path: chats.jsonl, kind: chats, use: {use}, {TERMS}}}\n"
        "  tuned: {type: train.sft, init: $base, chats: $own}\n"
        "  few: {type: import, path: chats.jsonl, kind: prompts, use: training}\n"
        "  seen: {type: evaluate, base: $base, policy: $tuned, prompts: $few}\n"
    )
    return build(validate(read_tree(folder / "r.yaml")))


def test_an_import_stage_has_uses_and_terms_as_data_has(tmp_path: Path) -> None:
    made = imported(tmp_path, "any")
    refuse_misuse(made)
    bound = {"from": "stages.own", "licence": "CC-X", "terms": "secret", "binds": True}
    assert terms_by_stage(made) == {"own": [bound], "tuned": [bound], "seen": [bound]}
    assert notes(made) == [
        "stages.own: its terms (CC-X, secret) bind what is made from it: tuned, seen",
        "stages.seen.prompts: stages.few is for training (use: training), but is evaluated on: few -> seen",
    ]


def test_an_import_stage_for_evaluation_is_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        refuse_misuse(imported(tmp_path, "evaluation"))
    assert str(raised.value) == (
        f"{tmp_path / 'r.yaml'}:5: stages.tuned.chats: stages.own is for evaluation only (use: evaluation), but would "
        "be trained on: own -> tuned. Train on other data, or set use: any in stages.own"
    )


@pytest.mark.parametrize("entry", ["models: {m: {hub: a/b, inherit: true}}", "data: {d: {hub: a/b, inherit: true}}"])
def test_what_binds_is_named(tmp_path: Path, entry: str) -> None:
    (tmp_path / "r.yaml").write_text(f"name: x\n{entry}\nstages: {{s: {{type: select, input: $d}}}}\n")
    with pytest.raises(RecipeError, match="inherit: true needs `licence` or `terms`"):
        validate(read_tree(tmp_path / "r.yaml"))
