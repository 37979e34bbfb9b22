"""The records of a stage, from a real run, as Parquet with splits and a card."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData
from tiny_run import togi

from togi.commands.export_data import Records, export_data
from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.records import (
    KINDS,
    Chat,
    Completion,
    Document,
    Figure,
    Match,
    Message,
    Pair,
    Prompt,
    Sample,
    Verdict,
)
from togi.core.settings import MAIN
from togi.report.card_parts import cell, fenced, front_matter, licence_keys, table

RECIPE = """\
name: rows
data:
  asked: {path: asked.jsonl, licence: CC-BY-4.0, terms: "name us | always", inherit: true}
stages:
  clean: {type: dedup, input: $asked, kind: prompts}
  parts: {type: split, input: $clean, parts: {train: 0.75, test-2: 0.25}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    things = ("rain", "snow", "the wind", "fire", "ice", "salt", "rain")
    rows = [{"question": f"Why is {thing} so?"} for thing in things]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.yaml").write_text(RECIPE)
    ended = togi(folder / "home", "run", str(folder / "rows.yaml"))
    assert ended.returncode == 0, ended.stderr
    return folder


def test_outputs_are_splits_that_the_hubs_reader_finds(done, tmp_path):
    ended = togi(done / "home", "export", f"{done / 'rows.yaml'}:parts", str(tmp_path / "out"), "--json")
    assert ended.returncode == 0, ended.stderr
    splits = {split["name"]: split for split in json.loads(ended.stdout)["splits"]}
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    (config,) = card.data.to_dict()["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "data/train.parquet"},
        {"split": "test_2", "path": "data/test_2.parquet"},
    ]
    rows = {name: pq.read_table(tmp_path / "out" / split["path"]).to_pylist() for name, split in splits.items()}
    assert [len(rows[name]) for name in ("train", "test_2")] == [splits[name]["rows"] for name in ("train", "test_2")]
    texts = [row["messages"][0]["content"] for part in rows.values() for row in part]
    assert len(texts) == len({*texts}) == 6 and "Why is rain so?" in texts


def test_the_card_says_where_the_data_comes_from_and_what_was_dropped(done, tmp_path):
    ended = togi(done / "home", "export", f"{done / 'rows.yaml'}:clean", str(tmp_path / "out"))
    assert ended.returncode == 0 and f"its card is {tmp_path / 'out' / 'README.md'}" in ended.stdout
    text = (tmp_path / "out" / "README.md").read_text()
    assert DatasetCard(text).data.to_dict()["license"] == "cc-by-4.0"
    assert "| asked.jsonl | not stated | 7 | CC-BY-4.0 | name us \\| always |" in text
    assert "also apply to everything made from this data" in text
    (step,) = [line for line in text.splitlines() if line.startswith("| clean |")]
    assert step.startswith("| clean | `dedup` | 7 | 6 |") and step.endswith(" 1 |")
    assert "name: rows" in (tmp_path / "out" / "recipe.lock.yaml").read_text()


def test_outputs_without_records_are_no_splits(done, tmp_path):
    run, empty = done / "home" / "runs" / "rows", tmp_path / "empty.parquet"
    write_records(empty, "prompts", [])
    files = {"lost-1": ("prompts", empty), MAIN: ("prompts", run / "clean" / "output" / "records.parquet")}
    export_data(Records(run=run, stage="parts", files=files), tmp_path / "out", as_json=False)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    (config,) = card.data.to_dict()["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train.parquet"}]
    assert "The output `lost_1` has no records, so it is not a split." in card.text
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["train.parquet"]
    with pytest.raises(InputError, match="stage parts has no records to export; see its drops"):
        export_data(Records(run=run, stage="parts", files={MAIN: ("prompts", empty)}), tmp_path / "none", as_json=False)
    assert not (tmp_path / "none").exists()


def exported(done: Path, files: dict[str, tuple[str, list[Any]]], folder: Path) -> Path:
    """The export of records, by output, as if a stage of the run had made them."""
    stored = {}
    for number, (output, (kind, records)) in enumerate(files.items()):
        path = folder / f"{number}.parquet"
        write_records(path, kind, records)
        stored[output] = (kind, path)
    run = done / "home" / "runs" / "rows"
    export_data(Records(run=run, stage="parts", files=stored), folder / "データ: 1", as_json=False)
    return folder / "データ: 1"


TURN = Message("user", "なぜ？", True, {"tools": [{"name": None}]})
ANSWER = Completion(text="はい", stop="length", token_ids=(1, 2), logprobs=(-0.5, -0.25))
EXTRA: list[dict[str, Any]] = [{}, {"a": 1}, {"a": "x", "b": [1, None, {"c": "日本"}]}, {"a": None}]
ALL_KINDS: dict[str, list[Any]] = {
    "prompts": [Prompt(id=f"p/{place}", messages=(TURN,), extra=extra) for place, extra in enumerate(EXTRA)],
    "chats": [Chat(id="c", messages=(TURN, Message("assistant", "はい")))],
    "pairs": [Pair(id="x", prompt=(TURN,), chosen=(Message("assistant", "はい"),), rejected=())],
    "documents": [Document(id="d", text="")],
    "verdicts": [Verdict(id="v", prompt="p/1", answers=("a", "b"), judge="j", text="", outcome="failed")],
    "samples": [
        Sample(id="s", prompt=Prompt(id="p/1", messages=(TURN,)), completion=ANSWER, scores={"r": None, "長さ": 2.0}),
        Sample(id="t", prompt=Prompt(id="p/1", messages=()), completion=Completion(text="", stop="error")),
    ],
    "tables": [Figure(id="f", benchmark="b", metric="m", subject="s")],
    "matches": [Match(id="m", record="p/1", other="o", where="w", how="h", similarity=0.5, text="")],
}


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_every_kind_are_read_by_datasets(done, tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    other = "verdicts" if kind != "verdicts" else "chats"
    out = exported(done, {MAIN: (kind, ALL_KINDS[kind]), "more": (other, ALL_KINDS[other])}, tmp_path)
    for config, split, wanted in (("default", "train", kind), (other, "more", other)):
        read = datasets.load_dataset(str(out), name=config, cache_dir=str(tmp_path / "cache"))
        assert [*read] == [split]
        written = pq.read_table(out / ("data" if config == "default" else config) / f"{split}.parquet").to_pylist()
        assert read[split].to_list() == written and len(written) == len(ALL_KINDS[wanted])


def test_each_output_is_a_split_of_its_own_with_a_name_that_datasets_accepts(done, tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ("a-b", "a_b", "all", "Train", "train", "a_b_2", "日本")
    files = {name: ("documents", [Document(id="d", text=name)]) for name in names}
    out = exported(done, files, tmp_path)
    read = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: rows["text"][0] for name, rows in read.items()} == {
        "a_b_3": "a-b", "a_b": "a_b", "all_2": "all", "Train": "Train", "train_2": "train", "a_b_2": "a_b_2",
        "日本": "日本",
    }  # fmt: skip


def test_paths_in_the_lock_are_relative_to_the_recipe(done, tmp_path):
    recipe = done / "below"
    (recipe / "rows").mkdir(parents=True)
    (recipe / "rows" / "asked.jsonl").write_text(json.dumps({"question": "Why?"}) + "\n")
    (recipe / "rows.yaml").write_text(
        RECIPE.replace("name: rows", "name: below").replace("asked.jsonl", "rows/asked.jsonl")
    )
    assert togi(done / "home", "run", str(recipe / "rows.yaml"), "--until", "clean").returncode == 0
    ended = togi(done / "home", "export", f"{recipe / 'rows.yaml'}:clean", str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "out" / "recipe.lock.yaml").read_text()
    assert "path: rows/asked.jsonl" in text and str(done) not in text


def test_mistakes_are_told(done, tmp_path):
    recipe = f"{done / 'rows.yaml'}:parts"
    ended = togi(done / "home", "export", recipe, str(tmp_path / "out"), "--format", "gguf")
    assert ended.returncode == 2 and "stage parts outputs records, which are written as parquet" in ended.stderr
    ended = togi(done / "elsewhere", "export", recipe, str(tmp_path / "out"))
    assert ended.returncode == 2 and "stage parts is not finished; run it with `togi run" in ended.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("")
    ended = togi(done / "home", "export", recipe, str(tmp_path / "mine"))
    assert ended.returncode == 2 and "exists already" in ended.stderr
    ended = togi(done / "home", "export", recipe, str(tmp_path / "mine" / "a" / "inside"))
    assert ended.returncode == 2 and "cannot be written" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "text", ["no", "Yes", "off", "null", "12:30", "1e-5", '日本: "x" #1', "- 'a'", "*b", "{c}", "a\nb"]
)
def test_front_matter_is_read_as_it_was_meant(text):
    result = EvalResult(
        task_type="t", dataset_type="togi", dataset_name=text, metric_type="m", metric_value=1e-5, metric_name=text
    )
    data = ModelCardData(model_name=text, eval_results=[result])
    front = front_matter({"language": [text], "model-index": data.to_dict()["model-index"]})
    found: Any = ModelCard(f"{front}\n# A\n").data
    assert found.eval_results == [result] and found.model_name == text and found.language == [text]
    assert ModelCard(str(ModelCard(f"{front}\n# A\n"))).data.to_dict() == found.to_dict()


def test_parts_of_cards():
    assert licence_keys(["CC-BY-4.0", "CC-BY-4.0"]) == {"license": "cc-by-4.0"}
    assert licence_keys(["MIT", "My own (v2)"]) == {"license": "other", "license_name": "mit-and-my-own-v2"}
    assert licence_keys(["", " "]) == {}
    assert table(("a", "b"), [["x|y", "one\ntwo"]]) == "| a | b |\n| --- | --- |\n| x\\|y | one<br>two |\n"
    assert table(("a",), []) == "" and cell(" a ") == "a"
    assert fenced("a ``` b") == "````\na ``` b\n````\n"
