"""`togi schema`: every shipped recipe fits it, and recipes with mistakes do not."""

import jsonschema
import pytest
from places import RECIPES
from ruamel.yaml import YAML

from togi.commands.schema import recipe_schema
from togi.stages.table import STAGES

SCHEMA = recipe_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SFT = {"type": "train.sft", "init": "$base", "chats": "$chats"}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_fits(path):
    assert [error.message for error in VALIDATOR.iter_errors(YAML(typ="safe").load(path))] == []


def test_the_schema_has_the_title_that_an_editor_shows():
    assert SCHEMA["title"] == "togi recipe"


def errors(**stage: object) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors({"name": "a", "stages": {"one": {**SFT, **stage}}})]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"epochz": 1}, {"type": "sft"}, {"lora": True}, {"lora": {"r": 16}}, {"batch_size": "four"}, {"init": None}),
        *({"init": "base"}, {"chats": "chats.jsonl"}),
    ],
)
def test_mistakes_do_not_fit(wrong):
    assert errors(**wrong)


def test_an_editor_is_told_the_wrong_word():
    assert errors(epochz=1) == ["Additional properties are not allowed ('epochz' was unexpected)"]
    for section, entry in (("models", {"path": "m", "templte": "a"}), ("data", {"path": "d", "templte": "a"})):
        (error,) = VALIDATOR.iter_errors({"name": "a", section: {"one": entry}})
        assert "'templte' was unexpected" in error.message and list(error.absolute_path) == [section, "one"]


@pytest.mark.parametrize("section", ["models", "data", "stages"])
def test_what_no_reference_can_name_does_not_fit(section):
    entry = {"models": {"path": "m"}, "data": {"path": "d.jsonl"}, "stages": SFT}[section]
    assert list(VALIDATOR.iter_errors({"name": "a", section: {"my_entry": entry}})) == []
    assert list(VALIDATOR.iter_errors({"name": "a", section: {"my entry": entry}}))


def test_a_stage_that_changes_an_extended_one_needs_no_type_but_known_words():
    change = {"name": "a", "extends": "b.yaml", "stages": {"one": {"batch_size": 4}}}
    assert list(VALIDATOR.iter_errors(change)) == []
    assert list(VALIDATOR.iter_errors({**change, "stages": {"one": {"batch_sise": 4}}}))
    assert list(VALIDATOR.iter_errors({"name": "a", "stages": {"one": {"batch_size": 4}}}))


def test_null_is_a_default_and_removes_an_entry():
    assert errors(lora=None, steps=None) == []
    assert list(VALIDATOR.iter_errors({"extends": "b.yaml", "stages": {"one": None}, "track": "wandb"})) == []


def test_every_stage_and_its_words_are_in_it():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name in STAGES:
        assert f"{name}:" in SCHEMA["$defs"]
    about = SCHEMA["$defs"]["train.sft:"]["properties"]["choose"]["anyOf"][0]
    assert about.get("description")
