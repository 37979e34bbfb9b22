"""The records of a stage, from a real run, as Parquet with splits and a card."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from tiny_run import togi

from togi.commands.export_data import Records, export_data
from togi.core.codec import write_records
from togi.core.errors import InputError
from togi.core.settings import MAIN
from togi.report.card_parts import cell, fenced, licence_keys, table

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


def test_parts_of_cards():
    assert licence_keys(["CC-BY-4.0", "CC-BY-4.0"]) == {"license": "cc-by-4.0"}
    assert licence_keys(["MIT", "My own (v2)"]) == {"license": "other", "license_name": "mit-and-my-own-v2"}
    assert licence_keys(["", " "]) == {}
    assert table(("a", "b"), [["x|y", "one\ntwo"]]) == "| a | b |\n| --- | --- |\n| x\\|y | one<br>two |\n"
    assert table(("a",), []) == "" and cell(" a ") == "a"
    assert fenced("a ``` b") == "````\na ``` b\n````\n"
