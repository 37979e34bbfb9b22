"""Shapes that come with a recipe are compared with the models that they describe."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_server import serving
from huggingface_hub import constants
from places import RECIPES
from tiny_run import tiny_model
from tokenizers_made import byte_bpe

from togi.cli import main
from togi.commands.check_shapes import ShapeChecks, check_shapes
from togi.core import hub
from togi.core.sources import ModelSource

SHAPE = json.loads((RECIPES / "shapes" / "llm-jp-3-13b.json").read_text())


def checked(folder: Path, shape: dict, own: dict) -> ShapeChecks:
    """The comparison of `shape` with a model folder whose configuration is `own`."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(own))
    (folder / "shape.json").write_text(json.dumps(shape))
    source = ModelSource(kind="path", name=str(model), shape=str(folder / "shape.json"))
    return check_shapes({"base": (source, "r.yaml:3")})


def test_the_models_own_configuration_says_the_same_with_more_keys(tmp_path):
    own = {key: value for key, value in SHAPE.items() if key != "unpadded_vocab_size"}
    assert not checked(tmp_path, SHAPE, {**own, "rope_theta": 1e4, "head_dim": 128}).problems
    unpadded = {**own, "vocab_size": 99_487}
    assert checked(tmp_path, unpadded, unpadded) == ShapeChecks()


def test_each_different_size_is_told_as_the_file_writes_it(tmp_path):
    own = {**SHAPE, "num_hidden_layers": 41, "max_position_embeddings": 8192, "tie_word_embeddings": True}
    (problem,) = checked(tmp_path, SHAPE, own).problems
    assert problem.startswith(f"r.yaml:3: models.base.shape: {tmp_path / 'shape.json'} does not describe ")
    for told in (
        "num_hidden_layers is 40, in the model's config.json 41",
        "max_position_embeddings is 4096, in the model's config.json 8192",
        "tie_word_embeddings is false, in the model's config.json true",
    ):
        assert told in problem


@pytest.mark.parametrize(
    ("file", "own", "note"),
    [
        ({"vocab_size": 99_584}, 99_584, "99,584 rows for 99,487 tokens; 97 are padding"),
        ({"vocab_size": 99_584}, 99_840, "99,840 rows for 99,487 tokens; 353 are padding. Its shape has 99,584 rows"),
        ({"vocab_size": 99_487}, 99_584, "Its shape has 99,487 rows; togi plan computes the memory of these"),
    ],
)
def test_padded_rows_are_reported_and_no_failure(tmp_path, file, own, note):
    found = checked(tmp_path, {**SHAPE, **file}, {**SHAPE, "vocab_size": own})
    assert (
        not found.problems and found.notes[0].startswith("models.base: its embeddings have") and note in found.notes[0]
    )


def test_rows_that_the_tokenizer_needs_are_no_padding(tmp_path):
    (tmp_path / "model").mkdir()
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(tmp_path / "model")
    count = len(tokenizer)
    plain = {key: value for key, value in SHAPE.items() if key != "unpadded_vocab_size"}
    few = checked(tmp_path, {**plain, "vocab_size": count - 1}, {**plain, "vocab_size": count})
    assert f"vocab_size is {count - 1}, in the model's config.json {count}" in few.problems[0]
    padded = checked(tmp_path, {**plain, "vocab_size": count}, {**plain, "vocab_size": count + 7})
    assert not padded.problems and f"{count + 7:,} rows for {count:,} tokens; 7 are padding" in padded.notes[0]


def test_a_model_on_a_server_is_not_compared_and_one_that_is_not_here_is_left_to_its_own_check(tmp_path):
    source = ModelSource(kind="endpoint", name="m", shape=str(tmp_path / "shape.json"))
    assert check_shapes({"m": (source, "")}).notes == [
        "models.m.shape is not compared with the model, which is on a server"
    ]
    gone = ModelSource(kind="path", name=str(tmp_path / "gone"), shape=str(tmp_path / "shape.json"))
    assert check_shapes({"m": (gone, "")}) == ShapeChecks()


RECIPE = """\
name: shaped
models:
  base: {hub: o/n, shape: shape.json, template: chatml}
data:
  talks: {path: talks.jsonl}
stages:
  tuned: {type: train.sft, init: $base, chats: $talks, steps: 1}
"""


@pytest.mark.parametrize(("layers", "code"), [(2, 0), (3, 3)])
def test_check_compares_the_shape_of_a_recipe_with_the_hubs_model(tmp_path, monkeypatch, layers, code):
    tiny_model(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    shape = {**json.loads(files["config.json"]), "num_hidden_layers": layers}
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    (tmp_path / "talks.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_silent", {})
    with serving({"o/n": files}) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        ended = CliRunner().invoke(main, ["check", str(tmp_path / "r.yaml")])
    assert ended.exit_code == code, ended.output
    told = "r.yaml:3: models.base.shape: "
    assert (
        (told in ended.output) == ("num_hidden_layers is 3, in the model's config.json 2" in ended.output) == bool(code)
    )
