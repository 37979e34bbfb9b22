"""What a model and records descend from, on the cards of a run of two trainings, one after the other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from tiny_run import QUESTIONS, tiny_model, togi

from togi.commands.descent import Descent
from togi.core.errors import InputError
from togi.core.files import write_json
from togi.report.card_words import LANGUAGES

BELOW = """\
name: chain
seed: 3
models:
  base: {path: ../model, template: chatml}
data:
  chats: {path: chats.jsonl, licence: MIT}
  asked: {path: asked.jsonl, licence: Apache-2.0}
stages:
  first: {type: train.sft, init: $base, chats: $chats, epochs: 1, batch_size: 4, learning_rate: 1.0e-3}
  pairs: {type: contrast, input: $asked, model: $base, off_topic: true, max_tokens: 12, min_tokens: 1}
  reward: {type: train.reward, init: $first, pairs: $pairs, epochs: 1, batch_size: 4, learning_rate: 1.0e-3}
"""
ABOVE = """\
extends: parts/below.yaml
stages:
  second: {type: train.dpo, init: $first, pairs: $pairs, epochs: 1, batch_size: 4, learning_rate: 1.0e-3}
"""
NAMES = ("one", "two")
OVERRIDE = "stages.second.epochs=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that extends one of another folder, after a run with an override."""
    found = tmp_path_factory.mktemp("descent")
    tiny_model(found / "model")
    (found / "parts").mkdir()
    asked = [{"question": question} for question in QUESTIONS]
    chats = [{"prompt": question, "completion": "I do not know."} for question in QUESTIONS[:4]]
    for name, rows in (("asked", asked), ("chats", chats)):
        (found / "parts" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found / "parts" / "below.yaml").write_text(BELOW)
    (found / "chain.yaml").write_text(ABOVE)
    ended = togi(found / "home", "run", str(found / "chain.yaml"), OVERRIDE, "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    return found


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """What the export of the second model told; its files are in `out`."""
    ended = togi(folder / "home", "export", f"{folder / 'chain.yaml'}:second", str(folder / "out"), "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_model_of_two_trainings_names_the_first_base_and_both(folder, told, language):
    text = (folder / "out" / ("README.md" if language == "en" else f"README.{language}.md")).read_text()
    (lead,) = [line for line in text.splitlines() if "`train.sft`, `train.dpo`" in line and not line.startswith("|")]
    assert re.search(r"(^|\W)model(\W|$)", lead) and "train.reward" not in lead and "train.sft-" not in text


def test_the_base_among_the_answers_is_the_one_that_the_recipe_names(told):
    assert [*told["answers"]] == ["base", "trained", "merged"]
    assert all(note.startswith("learnt.json has hashes") for note in told["notes"]) and len(told["notes"]) == 1
    assert told["answers"]["trained"] == told["answers"]["merged"]


def test_a_base_that_changed_since_is_not_asked(folder, told):
    (folder / "model" / "generation_config.json").rename(folder / "kept.json")
    try:
        ended = togi(folder / "home", "export", f"{folder / 'chain.yaml'}:second", str(folder / "other"), "--json")
    finally:
        (folder / "kept.json").rename(folder / "model" / "generation_config.json")
    assert ended.returncode == 0, ended.stderr
    told = "the base (model) is missing on this machine or has changed, so it was not asked"
    assert told in json.loads(ended.stdout)["notes"]


def test_no_licence_is_claimed_if_the_base_states_none(folder, told):
    card = ModelCard.load(folder / "out" / "README.md")
    assert "license" not in card.data.to_dict()
    rows = [line for line in card.text.splitlines() if line.startswith(("| model |", "| chats.jsonl", "| asked.jsonl"))]
    assert [row.split(" | ")[2:4] for row in sorted(rows)] == [["16", "Apache-2.0"], ["4", "MIT"], ["", "not stated"]]


def test_records_written_by_a_model_without_a_licence_have_none_either(folder):
    ended = togi(folder / "home", "export", f"{folder / 'chain.yaml'}:pairs", str(folder / "data"))
    assert ended.returncode == 0, ended.stderr
    text = (folder / "data" / "README.md").read_text()
    assert "\nlicense:" not in text and "| asked.jsonl | not stated | 16 | Apache-2.0 |" in text
    assert "| model | not stated |  | not stated | not stated |" in text


def test_the_recipe_beside_the_card_is_whole_and_has_the_overrides(folder, told):
    recipe = folder / "out" / "recipe.yaml"
    values = YAML(typ="safe", pure=True).load(recipe)
    assert "extends" not in values and values["stages"]["second"]["epochs"] == 2
    assert values["models"]["base"]["path"] == "model" and values["data"]["chats"]["path"] == "parts/chats.jsonl"
    (folder / "published.yaml").write_text(recipe.read_text())  # where its files are
    ended = togi(folder / "home", "check", str(folder / "published.yaml"))
    assert ended.returncode == 0, ended.stderr


def test_nothing_beside_the_card_names_a_folder_of_this_machine(folder, told):
    lock = (folder / "out" / "recipe.lock.yaml").read_text()
    assert "path: model\n" in lock and "path: parts/chats.jsonl\n" in lock and "fingerprint: " in lock
    written = [path for path in (folder / "out").rglob("*") if path.suffix in (".md", ".yaml", ".json")]
    assert [path.name for path in written if str(folder) in path.read_text()] == []


PLACES = {
    "hub": ({"hub": "owner/name", "revision": "v1"}, "owner/name 0123abc"),
    "package": ({"package": "some-weights"}, "some-weights 0123abc"),
    "outside": ({"path": "/somewhere/else/weights"}, "weights"),
}


@pytest.mark.parametrize(("entry", "shown"), PLACES.values(), ids=PLACES)
def test_the_root_is_named_as_it_was_when_the_training_began(tmp_path, entry, shown):
    run = tmp_path / "runs" / "r"
    write_json(tmp_path / "store" / "one" / "output" / "model" / "togi.json", {"base": {"revision": "0123abc"}})
    stages = [{"name": name, "type": "train.sft", "state": "done", "folder": f"../../store/{name}"} for name in NAMES]
    write_json(run / "state.json", {"name": "r", "state": "done", "stages": stages})
    inits = zip(NAMES, ("$base", "$alias"), strict=True)
    settings = {
        name: {"type": "train.sft", "init": init, "chats": "$chats", "fingerprint": "f"} for name, init in inits
    }
    models = {"base": entry, "alias": {"path": "$one"}}
    write_json(run / "recipe.lock.yaml", {"models": models, "data": {}, "stages": settings})  # JSON is YAML too
    (tmp_path / "r.yaml").write_text("name: r\nstages: {}\n")
    descent = Descent(run, "two", tmp_path / "r.yaml")
    assert descent.trainings == [*NAMES] and descent.root is not None
    assert descent.root.shown == shown and descent.root.revision == "0123abc"
    assert descent.locked.models_in("two") == ["base"]


def test_a_run_without_its_lock_is_told_how_to_get_it_again(tmp_path):
    with pytest.raises(InputError, match="is missing; run the recipe again"):
        Descent(tmp_path, "second")
