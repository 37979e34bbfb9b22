"""Chat health and diversity of several models, run as a user runs them, on random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import togi, write_recipe

from togi.core.codec import read_records
from togi.core.records import Figure

RECIPE = """\
name: answered
seed: 3
models:
  base: {path: model, template: chatml}
  twin: {path: model, template: chatml}
data:
  questions: {path: questions.jsonl}
stages:
  pairs: {type: contrast, input: $questions, model: $base, off_topic: true, max_tokens: 12, min_tokens: 1}
  policy: {type: train.dpo, init: $base, pairs: $pairs, epochs: 2, batch_size: 2, learning_rate: 1e-2}
  led: {type: select, input: $questions, system: Be brief.}
  reward: {type: train.reward, init: $base, pairs: $pairs, epochs: 1, batch_size: 2, learning_rate: 1e-3}
  measured:
    type: evaluate
    models: [$base, $twin, $policy]
    bootstrap: 100
    benchmarks:
      - {type: chat_health, prompts: $questions, samples: 2, max_tokens: 24}
      - {type: diversity, prompts: $questions, samples: 3, max_tokens: 24}
      - {type: diversity, name: one_answer, prompts: $questions, samples: 1, max_tokens: 24}
      - {type: reward_kl, prompts: $questions, reward: $reward, samples: 2, best_of: 4, max_tokens: 12}
      - {type: reward_kl, name: led, prompts: $led, reward: $reward, samples: 1, best_of: 1, max_tokens: 4, seed: 5}
      - type: reward_kl
        name: unled
        prompts: $led
        reward: $reward
        reward_system: drop
        samples: 1
        best_of: 1
        max_tokens: 4
        seed: 5
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answered")
    found = togi(folder / "home", "run", str(write_recipe(folder, RECIPE)), "--threads", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def table(folder: Path, benchmark: str) -> dict[str, Any]:
    (summary,) = (folder / "home" / "store").glob("evaluate-*/summary.json")
    return next(each for each in json.loads(summary.read_text())["benchmarks"] if each["benchmark"] == benchmark)


def values(folder: Path, benchmark: str, metric: str, subject: str) -> list[float]:
    """Returns the numbers of single prompts."""
    (file,) = (folder / "home" / "store").glob("evaluate-*/output/items.parquet")
    return [
        row.value
        for row in read_records(file)[1]
        if isinstance(row, Figure)
        and row.value is not None
        and (row.benchmark, row.metric, row.subject) == (benchmark, metric, subject)
    ]


def test_the_health_of_answers_is_counted(run: Path):
    found = table(run, "chat_health")
    for name in ("base", "policy"):
        cells = found["cells"][name]
        assert (cells["ended properly"]["n"], found["rows"]) == (16, 8)  # two answers to each prompt
        cut = values(run, "chat_health", "cut off", name)
        assert cells["cut off"]["value"] == pytest.approx(sum(cut) / 16) and {*cut} <= {0.0, 1.0}
        assert 0 < cells["length (tokens)"]["value"] <= 24
    assert found["cells"]["base"]["cut off"]["value"] > 0, "random weights hardly ever end an answer"
    assert found["differences"]["twin"]["cut off"]["value"] == 0
    assert found["manifest"]["common"]["asked"]["answers"]["sampling"]["max_tokens"] == 24


def test_equal_models_are_equally_diverse_and_a_trained_one_is_not(run: Path):
    found = table(run, "diversity")
    assert len(found["columns"]) == 11 and found["rows"] == 8
    for column in found["columns"]:
        assert found["differences"]["twin"][column["name"]]["value"] == 0
    assert any(found["differences"]["policy"][column["name"]]["value"] for column in found["columns"])
    one = values(run, "diversity", "Vendi score", "base")
    assert found["cells"]["base"]["Vendi score"]["value"] == pytest.approx(sum(one) / 8, abs=1e-9)


def test_models_are_as_alike_as_their_answers(run: Path):
    (part,) = table(run, "diversity")["parts"]
    cells = part["cells"]
    alike = {one: {other: cells[one][f"like {other}"]["value"] for other in cells} for one in cells}
    assert alike["base"]["twin"] > alike["base"]["base"], "answers of equal models are in part the same"
    assert alike["base"]["policy"] == pytest.approx(alike["policy"]["base"])
    assert alike["base"]["policy"] < alike["base"]["twin"]


def test_one_answer_a_prompt_has_no_columns_of_answers_to_one_prompt(run: Path):
    names = [column["name"] for column in table(run, "one_answer")["columns"]]
    assert "distinct-2" in names and "Vendi score" in names and not [name for name in names if "per prompt" in name]


def test_a_model_has_no_kl_from_its_twin_and_some_from_a_trained_one(run: Path):
    found = table(run, "reward_kl")
    assert found["cells"]["twin"]["KL (nats)"]["value"] == 0 and found["cells"]["base"]["KL (nats)"]["value"] == 0
    nats = values(run, "reward_kl", "KL (nats)", "policy")
    assert found["cells"]["policy"]["KL (nats)"]["value"] == pytest.approx(sum(nats) / 8) != 0
    assert list(found["parts"][0]["cells"]) == ["best of 1", "best of 2", "best of 4"]
    best = [row["reward"]["value"] for row in found["parts"][0]["cells"].values()]
    assert best[0] == pytest.approx(found["cells"]["base"]["reward"]["value"]) and best == sorted(best)


def test_a_reward_model_may_read_no_system_turn(run: Path):
    for metric, same in (("KL (nats)", True), ("reward", False)):
        found = [values(run, name, metric, "policy") for name in ("led", "unled")]
        assert len(found[0]) == 8 and (found[0] == found[1]) is same, metric
    assert "reward_system" not in table(run, "led")["manifest"]["common"]
    assert table(run, "unled")["manifest"]["common"]["reward_system"] == "drop"


def test_the_report_draws_the_frontier(run: Path):
    page = next((run / "home").rglob("report.html")).read_text()
    points = page.count('<circle class="dot c3"')
    assert "reward against KL (nats)" in page and points == 3 + 1 + 1, "the line of best of n, of each of the three"


def test_what_a_stage_trained_is_measured_outside_its_recipe(run: Path):
    recipe, questions = run / "tiny.yaml", run / "questions.jsonl"
    words = f"{{type: chat_health, prompts: {questions}, samples: 2, max_tokens: 24}}"
    ended = togi(run / "home", "evaluate", f"{recipe}:policy", words, "--json", TOGI_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["rows"], list(found["models"])) == (8, ["policy"])
    assert found["models"]["policy"]["length (tokens)"]["value"] > 0
    (known,) = found["manifest"]["subjects"].values()
    assert known["engine"] == "togi" and known["template"]
    assert found["leaks"] == {"policy": 8}, "its pairs were made from these questions"
    ended = togi(
        run / "home", "evaluate", str(run / "model"), words, "--template", "chatml", "--json", TOGI_THREADS="1"
    )
    assert json.loads(ended.stdout)["leaks"] == {"model": None}
    ended = togi(run / "home", "evaluate", str(run / "model"), words, "--template", "chatml", TOGI_THREADS="1")
    assert "questions that a model was trained on: model unknown" in ended.stdout


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("samples: 2,", "samples: 2, language: english,", "language"),
        ("samples: 3,", "samples: 3, question: wording,", "no column 'wording'"),
    ],
)
def test_settings_that_do_not_fit_are_told(tmp_path: Path, was: str, now: str, said: str):
    recipe = RECIPE.replace("$twin, $policy", "$twin").replace(was, now)
    found = togi(tmp_path / "home", "run", str(write_recipe(tmp_path, recipe)), "--threads", "1", "--until", "measured")
    assert found.returncode != 0 and said in " ".join(found.stderr.split()), found.stdout + found.stderr
