"""Suggestions for mistakes: other libraries' names, short names of stages, values of another shape."""

import pytest

from togi.cli.list import stage_settings
from togi.core.errors import InputError, RecipeError
from togi.recipe.graph import build
from togi.recipe.hints import ABSENT, FOREIGN, MORE, meant, outside_name
from togi.recipe.schema import ModelSpec, RecipeHead, validate
from togi.recipe.source import read_tree
from togi.stages.table import STAGES

OURS = {key for name in STAGES for key in stage_settings(name)["settings"]}
OURS |= {"rank", "targets", "rank_stabilised", *RecipeHead.model_fields, *ModelSpec.model_fields}


def test_every_name_that_is_suggested_exists_and_is_not_the_foreign_one():
    assert [name for name in FOREIGN.values() if name not in OURS] == []
    assert [name for name in (*MORE, *ABSENT) if name not in FOREIGN] == []


def told(tmp_path, **stage: object) -> str:
    settings = {"type": "train.sft", "init": "$base", "chats": "$chats", **stage}
    text = "name: a\nmodels:\n  base: {path: .}\ndata:\n  chats: {path: r.yaml}\nstages:\n  one: "
    (tmp_path / "r.yaml").write_text(text + str(settings).replace("True", "true") + "\n")
    with pytest.raises(RecipeError) as found:
        validate(read_tree(tmp_path / "r.yaml"))
    return str(found.value)


@pytest.mark.parametrize(
    ("stage", "hint"),
    [
        ({"type": "sft"}, "did you mean 'train.sft'?"),
        ({"lora": {"r": 16}}, "lora.r: unknown key; did you mean 'rank'?"),
        ({"lora": True}, "did you mean `lora: {}`, all of its defaults?"),
        ({"per_device_train_batch_size": 4}, "did you mean 'batch_size'? (the examples of one step"),
        ({"num_train_epochs": 4}, "did you mean 'epochs'?"),
        ({"cutoff_len": 4}, "did you mean 'max_length'?"),
        ({"lora_rank": 4}, "did you mean 'lora.rank'?"),
        ({"neftune_noise_alpha": 5}, "noise on embeddings is not supported"),
        ({"chats": "chats"}, "did you mean '$chats'?"),
        ({"init": "Qwen/Qwen3-0.6B"}, "models: {base: {hub: Qwen/Qwen3-0.6B}}"),
        ({"epoch": 1}, "did you mean 'epochs'?"),
    ],
)
def test_mistakes_are_answered_with_what_was_meant(tmp_path, stage, hint):
    assert hint in told(tmp_path, **stage)


def test_a_hub_id_given_as_a_folder_is_told(tmp_path):
    text = "name: a\nmodels:\n  base: {path: Qwen/Qwen3-0.6B}\ndata:\n  chats: {path: r.yaml}\nstages:\n"
    (tmp_path / "r.yaml").write_text(text + "  one: {type: train.sft, init: $base, chats: $chats}\n")
    with pytest.raises(InputError, match=r"did you mean a model on the hub, `hub: Qwen/Qwen3-0\.6B`\?"):
        build(validate(read_tree(tmp_path / "r.yaml")))


def test_nothing_is_suggested_where_nothing_is_near():
    assert meant("zzz", ["alpha", "beta"]) == "" and outside_name("a b") == ""
