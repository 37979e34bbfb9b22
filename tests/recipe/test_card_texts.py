"""The `card:` of a recipe: recommended sampling, by the name of a preset or by values."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from togi.cli import main
from togi.cli.models import trained_by
from togi.core.errors import RecipeError
from togi.core.sampling import PRESETS, Drawing, Recommended
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

RECIPES = Path(__file__).parent.parent.parent / "recipes"
RECIPE = """\
name: r
data: {rows: {path: rows.jsonl}}
stages:
  some: {type: select, input: $rows, count: 1}
"""


def recipe(folder: Path, card: str) -> Path:
    (folder / "rows.jsonl").write_text('{"prompt": "Why?"}\n')
    path = folder / "r.yaml"
    path.write_text(f"{RECIPE}card: {card}\n")
    return path


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("{sampling: vikhr-nemo}", Recommended.of("vikhr-nemo")),
        ("{sampling: {temperature: 0.3, top_k: 40}}", Recommended.of(Drawing(temperature=0.3, top_k=40))),
        ("{title: Mine}", None),
        ("{sampling: null}", None),
    ],
)
def test_a_recipe_recommends_sampling(tmp_path, card, found):
    facts = trained_by(f"{recipe(tmp_path, card)}:some")
    assert facts is not None and facts["sampling"] == found
    assert "sampling" not in facts["texts"]


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        (
            "vikhr",
            "card.sampling: should be 'arrowideative', 'llm-jp-3.1' or 'vikhr-nemo', or should be a map of settings, "
            "found 'vikhr'",
        ),
        ("{temperature: 3}", "card.sampling.temperature: should be less than or equal to 2"),
        ("{temprature: 0.3}", "card.sampling.temprature: unknown key"),
        ("{stop: [x]}", "card.sampling.stop: unknown key"),
    ],
)
def test_wrong_sampling_is_told_with_its_line_and_what_there_is(tmp_path, sampling, says):
    path = recipe(tmp_path, f"{{sampling: {sampling}}}")
    with pytest.raises(RecipeError) as told:
        validate(read_tree(path))
    assert says in str(told.value) and f"{path}:5: " in str(told.value)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("arrowideative-13b", "arrowideative"),
        ("llm-jp-3.1-instruct4", "llm-jp-3.1"),
        ("llm-jp-3.1-instruct4-8x13b", "llm-jp-3.1"),
        ("vikhr-nemo-12b", "vikhr-nemo"),
        ("toy/vikhr", "vikhr-nemo"),
        ("ca-reward-3b-ja", None),  # a reward model writes nothing
    ],
)
def test_shipped_recipes_name_the_preset_of_their_card(name, preset):
    assert validate(read_tree(RECIPES / f"{name}.yaml")).card.sampling == preset


def test_commands_name_the_presets_that_there_are():
    for command in ("chat", "serve", "ground", "export"):
        ended = CliRunner().invoke(main, [command, "--sampling", "vikhr"])
        assert ended.exit_code == 2 and all(f"'{name}'" in ended.output for name in PRESETS)
