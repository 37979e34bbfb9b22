"""The card of a model that benchmarks measured, exported from a real run: its tables, and the hub library's results."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from measured import BEGUN
from tiny_run import togi, write_recipe

from togi.core.files import read_json
from togi.report.card_words import LANGUAGES, WORDS

RECIPE = (
    BEGUN
    + """\
      - {type: chat_health, prompts: $questions, max_tokens: 8}
  scores:
    type: evaluate
    models: [$reward, $other]
    bootstrap: 100
    benchmarks:
      - {type: reward_accuracy, pairs: $pairs}
  compared:
    {type: evaluate, base: $base, policy: $policy, prompts: $questions, max_tokens: 8, bootstrap: 100}
"""
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, with the policy and the reward model exported beside it."""
    folder = tmp_path_factory.mktemp("benched")
    recipe = write_recipe(folder, RECIPE)
    for asked in (
        ("run", str(recipe), "--threads", "1"),
        ("export", f"{recipe}:policy", str(folder / "policy")),
        ("export", f"{recipe}:reward", str(folder / "reward"), "--reward"),
    ):
        ended = togi(folder / "home", *asked)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def card_of(exported: Path, stage: str) -> Any:
    return ModelCard.load(exported / stage / "README.md")


def views(exported: Path, stage: str) -> dict[str, Any]:
    """The benchmarks of a stage as the run stored them."""
    found = [read_json(path) for path in (exported / "home" / "store").glob("evaluate-*/summary.json")]
    return {
        each["benchmark"]: each for summary in found for each in summary.get("benchmarks", ()) if stage in each["cells"]
    }


@pytest.mark.parametrize("stage", ["policy", "reward"])
def test_every_figure_of_every_benchmark_round_trips_through_the_hubs_library(exported, stage):
    card = card_of(exported, stage)
    results = card.data.eval_results
    assert ModelCard(str(card)).data.eval_results == results
    for name, view in views(exported, stage).items():
        tables = [("", view["cells"]), *((f"{part['title']}: ", part["cells"]) for part in view["parts"])]
        want = {
            before + metric: (cell["value"], cell["low"], cell["n"], view["leaks"][stage])
            for before, cells in tables
            for metric, cell in cells.get(stage, {}).items()
            if cell["value"] is not None
        }
        got = {
            each.metric_name: (
                each.metric_value, *(each.metric_args.get(key) for key in ("low", "n", "trained_on"))
            )
            for each in results if each.dataset_name.endswith(f", {name}")
        }  # fmt: skip
        assert got == want and want


def test_measurements_of_several_stages_stay_apart(exported):
    results = card_of(exported, "policy").data.eval_results
    names = {each.dataset_name for each in results}
    assert {"measured: answers, answers", "measured: answers, chat_health", "measured: compared"} <= names
    assert len({each.dataset_config for each in results}) == len(names)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_accuracy_of_a_reward_model_is_on_its_card(exported, language):
    words, name = WORDS[language], "README.md" if language == "en" else f"README.{language}.md"
    text = (exported / "reward" / name).read_text()
    assert "\n### reward_accuracy\n" in text and "| **reward** |" in text and "other" in text
    leaks = views(exported, "reward")["reward_accuracy"]["leaks"]
    told = words["trained_on"].format(counts=f"reward {leaks['reward']}, other {leaks['other']}")
    assert f"\n{told}\n" in text and min(leaks.values()) > 0
    assert not re.search(r"\bNone\b|\{[a-z]+\}", text.partition(f"## {words['results']}")[2].partition("\n## ")[0])
