"""A mixture has the requested shares and reports them; it repeats or leaves out records only where it must."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_run import tiny_model, togi

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError
from togi.core.files import read_json, read_lines
from togi.core.records import Document
from togi.core.settings import RecordsRef
from togi.core.sources import ModelSource
from togi.stages.base import RECORDS_FILE
from togi.stages.context import Context, Control, Resolved
from togi.stages.data import mix_work
from togi.stages.data.mix import PRESETS, Mix


def documents(name: str, count: int, words: int = 1) -> list[Document]:
    return [Document(id=f"{name}{i}", text=" ".join([f"{name}{i}"] * words)) for i in range(count)]


def context(folder: Path, sets: dict[str, list[Document]], seed: int = 1) -> Context:
    inputs = {}
    for name, records in sets.items():
        write_records(folder / name / RECORDS_FILE, "documents", records)
        inputs[RecordsRef(f"${name}")] = Resolved("documents", folder=folder / name)
    made = folder / f"mix-{seed}"
    made.mkdir()
    return Context("mixture", made, folder, seed, inputs, Control(send=lambda event: None))


def mixed(made: Context, shares: dict[str, float], **more: Any) -> tuple[list[Document], dict[str, Any]]:
    """Returns the mixture and its summary."""
    inputs = [{"input": f"${name}", "share": share} for name, share in shares.items()]
    mix_work.run(Mix.model_validate({"inputs": inputs, "kind": "documents", "by": "rows", **more}), made)
    made.finish()
    return read_records(made.folder / RECORDS_FILE)[1], read_json(made.folder / "summary.json")


def test_shares_of_rows_are_exact_and_hold_at_every_moment(tmp_path):
    made = context(tmp_path, {"a": documents("a", 100), "b": documents("b", 100)})
    records, summary = mixed(made, {"a": 1, "b": 3})
    names = [record.id[0] for record in records]
    assert Counter(names) == {"b": 100, "a": 33}
    assert all(abs(names[: i + 1].count("a") - 0.25 * (i + 1)) <= 1 for i in range(len(names)))
    told = summary["mixture"]["$a"]
    assert (told["records"], told["rows"], told["asked"], told["epochs"]) == (33, 33, 0.25, 0.33)
    assert told["share"] == pytest.approx(33 / 133) and summary["drops"] == {"over_share": 67}
    assert summary["counts"] == {"in": 200, "out": 133}
    kept = [int(record.id[1:]) for record in records if record.id[0] == "a"]
    assert kept == sorted(kept) != list(range(33))  # a random part, in the original order


@pytest.mark.parametrize("amount", [1, 9, 10, 11, 25])
def test_an_amount_of_rows_is_exact(tmp_path, amount):
    made = context(tmp_path, {name: documents(name, 50) for name in "abcd"})
    records, summary = mixed(made, dict.fromkeys("abcd", 1), amount=amount)
    assert len(records) == amount and summary["counts"]["out"] == amount
    rows = [told["rows"] for told in summary["mixture"].values()]
    assert max(rows) - min(rows) <= 1


def test_the_part_follows_from_the_seed(tmp_path):
    sets = {"a": documents("a", 50), "b": documents("b", 20)}
    first, again = (mixed(context(tmp_path / name, sets), {"a": 1, "b": 1})[0] for name in ("x", "y"))
    other, _ = mixed(context(tmp_path / "z", sets, seed=2), {"a": 1, "b": 1})
    assert first == again and {record.id for record in first} != {record.id for record in other}


def test_a_small_set_is_repeated_and_its_copies_have_ids_of_their_own(tmp_path):
    made = context(tmp_path, {"a": documents("a", 4), "b": documents("b", 10)})
    records, summary = mixed(made, {"a": 1, "b": 1}, epochs=2.5)
    assert len(records) == 20 and len({record.id for record in records}) == 20
    repeated = Counter(record.text for record in records if record.text[0] == "a")
    assert sorted(repeated.values()) == [2, 2, 3, 3] and summary["mixture"]["$a"]["epochs"] == 2.5
    assert all(record.parents == (record.text,) for record in records if record.id not in made_ids())
    assert summary["drops"] == {} and summary["counts"] == {"in": 14, "out": 20}


def test_a_single_set_is_repeated_whole(tmp_path):
    records, summary = mixed(context(tmp_path, {"a": documents("a", 4)}), {"a": 1}, epochs=16)
    assert Counter(record.text for record in records) == {f"a{i}": 16 for i in range(4)}
    assert len({record.id for record in records}) == 64 and summary["mixture"]["$a"]["epochs"] == 16


def made_ids() -> list[str]:
    return [f"{name}{i}" for name in "ab" for i in range(10)]


def test_a_share_that_a_set_cannot_fill_is_an_error_with_what_to_do(tmp_path):
    made = context(tmp_path, {"a": documents("a", 4), "b": documents("b", 100)})
    with pytest.raises(InputError, match=r"\$a has 4 rows, but .* is 20; set epochs to 5.00 or more, or amount to 8"):
        mixed(made, {"a": 1, "b": 1}, amount=40)


def test_records_that_two_sets_share_are_told_and_told_apart(tmp_path):
    made = context(tmp_path, {"a": documents("a", 4), "b": documents("a", 6)})
    records, _ = mixed(made, {"a": 1, "b": 1})
    assert len({record.id for record in records}) == len(records) == 8
    (alarm,) = read_lines(made.folder / "alarms.jsonl")
    assert alarm["name"] == "same_records" and "4 records of $b" in alarm["message"]


def test_tokens_are_counted_by_the_tokenizer(tmp_path):
    tiny_model(tmp_path / "model")
    made = context(tmp_path, {"a": documents("a", 40, words=9), "b": documents("b", 400)})
    source = ModelSource(kind="path", name=str(tmp_path / "model"), template="chatml")
    made.inputs["$base"] = Resolved("model", source=source)
    records, summary = mixed(made, {"a": 1, "b": 1}, by="tokens", model="$base", amount=600)
    told = summary["mixture"]
    assert all(abs(told[name]["share"] - 0.5) < 0.05 for name in ("$a", "$b"))
    assert told["$a"]["tokens"] + told["$b"]["tokens"] == pytest.approx(600, abs=40)
    counts = Counter(record.id[0] for record in records)
    assert counts["b"] > 5 * counts["a"] > 0


def test_presets_are_shares_of_instruction_text_and_corpus():
    inputs = [{"input": "$pairs"}, {"input": "$corpus"}]
    found = {name: Mix.model_validate({"inputs": inputs, "model": "$m", "preset": name}).shares for name in PRESETS}
    assert found == {"ipt-3.1": [0.225, 0.775], "ipt-llmjp4": [0.6, 0.4]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "by: tokens needs `model`"),
        ({"by": "rows", "model": "$m"}, "by: rows does not read model"),
        ({"model": "$m", "preset": "ipt-3.1", "inputs": [{"input": "$a", "share": 2}, {"input": "$b"}]}, "two inputs"),
        ({"by": "rows", "inputs": [{"input": "$a"}, {"input": "$a"}]}, r"\$a is listed twice"),
    ],
)
def test_contradictions_are_refused(settings, message):
    given = {"inputs": [{"input": "$a"}, {"input": "$b"}], **settings}
    with pytest.raises(ValidationError, match=message):
        Mix.model_validate(given)


RECIPE = """\
name: mixed
data:
  pairs: {path: pairs.jsonl}
  corpus: {path: corpus.jsonl}
stages:
  all: {type: mix, inputs: [{input: $pairs, share: 1}, {input: $corpus, share: 2}], kind: documents, by: rows}
"""


def test_a_recipe_mixes_and_tells_the_shares(tmp_path):
    for name, count in (("pairs", 30), ("corpus", 40)):
        rows = [json.dumps({"text": f"{name} {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "mixed.yaml").write_text(RECIPE)
    ended = togi(tmp_path / "home", "run", str(tmp_path / "mixed.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert "$pairs: 20 rows, 33.33% of the mixture (33.33% requested), 0.67 epochs" in ended.stderr
    shown = json.loads(
        togi(tmp_path / "home", "show", str(tmp_path / "mixed.yaml"), "all", "-n", "99", "--json").stdout
    )
    texts = [row["text"].split()[0] for row in shown["records"]]
    assert texts[:3] == ["corpus", "pairs", "corpus"] and Counter(texts) == {"corpus": 40, "pairs": 20}
