"""`togi init`: a recipe for each goal that passes `togi check`; bad input is reported, and nothing is overwritten."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_run import tiny_model

from togi.cli import main

USER = {"role": "user", "content": "Why is the sky blue?"}
ROWS = {
    "sft": {"messages": [USER, {"role": "assistant", "content": "Because."}], "topic": "sky"},
    "dpo": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "reward": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "grpo": {"question": "What is 1 + 1?", "answer": "2"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def togi(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def write_rows(folder: Path, goal: str, count: int = 40) -> Path:
    def numbered(value: object, n: int) -> str:
        return json.dumps(value, ensure_ascii=False).replace("?", f" {n}?")

    (folder / "rows.jsonl").write_text("".join(numbered(ROWS[goal], n) + "\n" for n in range(count)))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("goal", ROWS)
def test_the_recipe_of_each_goal_passes_check(here, model, goal):
    data = write_rows(here, goal)
    (here / "recipes").mkdir()
    ended = togi("init", "--model", model, "--data", data, "--goal", goal, "--output", "recipes/mine.yaml")
    assert ended.exit_code == 0, ended.output
    assert (
        "next: togi check recipes/mine.yaml" in ended.output
        and "../rows.jsonl" in Path("recipes/mine.yaml").read_text()
    )
    checked = togi("check", "recipes/mine.yaml")
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    ("goal", "count", "warmup", "every"),
    [("dpo", 40, 0, 1), ("dpo", 800, 4, 11), ("sft", 800, 9, 20), ("dpo", 5000, 10, 20)],
)
def test_the_schedule_suits_the_number_of_rows(here, model, goal, count, warmup, every):
    ended = togi("init", "--model", model, "--data", write_rows(here, goal, count), "--goal", goal)
    assert ended.exit_code == 0, ended.output
    text = Path(f"{goal}.yaml").read_text()
    assert f"    warmup_steps: {warmup} #" in text and f"    evaluate_every: {every} #" in text


def test_columns_and_the_template_are_shown(here, model):
    data = write_rows(here, "sft")
    ended = togi("init", "--model", model, "--data", data, "--goal", "sft", "--json")
    shown = json.loads(ended.output)
    assert [(row["column"], row["read"]) for row in shown["columns"]] == [("messages", "chats"), ("topic", None)]
    assert shown["model"]["template"] == "chatml"  # the tiny tokenizer has no template
    text = Path("sft.yaml").read_text()
    assert text.count("#") > 5 and "name: sft\n" in text


def test_a_model_with_a_template_keeps_it(here, model):
    (here / "m").mkdir()
    for path in model.iterdir():
        (here / "m" / path.name).write_bytes(path.read_bytes())
    (here / "m" / "chat_template.jinja").write_text("{{ messages }}")
    shown = togi("init", "--model", "m", "--data", write_rows(here, "dpo"), "--goal", "dpo", "--json")
    assert json.loads(shown.output)["model"] == {"path": "m"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "MODEL", "--data", "rows.jsonl", "--goal", "dpo"], "these rows fit --goal sft or grpo"),
        (["--model", "MODEL", "--data", "gone", "--goal", "sft"], "gone"),
        (["--model", "gone", "--data", "rows.jsonl", "--goal", "sft"], "a model folder, a model's id on the hub"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(here, model, words, told):
    write_rows(here, "sft")
    ended = togi("init", *(str(model) if word == "MODEL" else word for word in words))
    assert ended.exit_code != 0 and told in ended.output
    assert not list(here.glob("*.yaml"))


def test_nothing_is_overwritten(here, model):
    data = write_rows(here, "grpo")
    (here / "grpo_reward.py").write_text("mine")
    ended = togi("init", "--model", model, "--data", data, "--goal", "grpo")
    assert ended.exit_code == 3 and "exists already" in ended.output
    assert (here / "grpo_reward.py").read_text() == "mine" and not (here / "grpo.yaml").exists()
