"""`split` in recipes: kinds follow from the input and from the readers of the parts; parts are as specified."""

import json
from pathlib import Path

import pytest
from tiny_run import togi

from togi.core.codec import read_records, write_records
from togi.core.errors import InputError, RecipeError
from togi.core.records import Completion, Message, Prompt, Record, Sample
from togi.core.settings import RecordsRef
from togi.recipe.graph import Graph, build, kinds_of
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.stages.base import RECORDS_FILE, output_path
from togi.stages.context import Context, Control, Resolved
from togi.stages.data.split import STAGE, Split
from togi.stages.data.split_work import run

REF = RecordsRef("$x")


def context(folder: Path, kind: str, records: list[Record]) -> Context:
    write_records(folder / "x" / RECORDS_FILE, kind, records)
    inputs: dict[str, Resolved] = {REF: Resolved(kind, folder=folder / "x")}
    made = Context("parts", folder / "split-0", folder, 1, inputs, Control(send=lambda event: None))
    made.folder.mkdir()
    made.reasons = STAGE.reasons
    return made


def split(
    folder: Path, kind: str, records: list[Record], parts: dict[str, float]
) -> tuple[Context, dict[str, list[str]]]:
    made = context(folder, kind, records)
    run(Split.model_validate({"input": "$x", "kind": kind, "parts": parts}), made)
    made.finish()
    return made, {name: [r.id for r in read_records(made.folder / output_path(kind, name))[1]] for name in parts}


def prompts(count: int, same: int = 1) -> list[Record]:
    return [Prompt(id=f"p{i}", messages=(Message("user", f"Question {i // same}?"),)) for i in range(count)]


def test_every_record_is_in_one_part_in_the_order_of_the_input(tmp_path):
    made, parts = split(tmp_path, "prompts", prompts(103), {"train": 0.9, "test": 0.1})
    assert (len(parts["train"]), len(parts["test"])) == (93, 10)
    assert sorted(parts["train"] + parts["test"]) == sorted(f"p{i}" for i in range(103))
    assert all(names == sorted(names, key=lambda name: int(name[1:])) for names in parts.values())
    assert made.counts == {"in": 103, "train": 93, "test": 10, "out": 103} and not made.drops


def test_equal_prompts_stay_together_and_counts_leave_records_over(tmp_path):
    made, parts = split(tmp_path, "prompts", prompts(30, same=3), {"train": 12, "test": 6})
    owners = [{int(name[1:]) // 3 for name in names} for names in parts.values()]
    assert not owners[0] & owners[1] and (len(parts["train"]), len(parts["test"])) == (12, 6)
    assert made.drop_counts() == {"left_over": 12}


def test_answers_to_one_prompt_are_never_on_both_sides(tmp_path):
    done = Completion(text="So.", stop="terminator")
    records: list[Record] = [
        Sample(id=f"s{i}", prompt=Prompt(id=f"p{i // 7}", messages=(Message("user", f"Q{i // 7}"),)), completion=done)
        for i in range(70)
    ]
    _, parts = split(tmp_path, "samples", records, {"train": 0.8, "test": 0.2})
    assert len(parts["train"]) == 56
    assert {int(n[1:]) // 7 for n in parts["train"]}.isdisjoint(int(n[1:]) // 7 for n in parts["test"])


def test_a_part_that_equal_prompts_make_uneven_is_an_alarm_and_an_empty_one_an_error(tmp_path):
    _, parts = split(tmp_path, "prompts", prompts(10, same=5), {"a": 0.6, "b": 0.4})
    assert sorted(map(len, parts.values())) == [5, 5]
    assert "stay together" in (tmp_path / "split-0" / "alarms.jsonl").read_text()
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match=r"part (a|b) would be empty"):
        split(tmp_path / "more", "prompts", prompts(10, same=10), {"a": 0.6, "b": 0.4})
    (tmp_path / "last").mkdir()
    with pytest.raises(InputError, match=r"need 12 records, but \$x has only 10"):
        split(tmp_path / "last", "prompts", prompts(10), {"a": 8, "b": 4})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": 0.5, "b": 0.4}, "the shares sum to 0.9 but must sum to 1"),
        ({"a": 0.5, "b": 4}, "some parts are shares"),
        ({"main": 0.5, "b": 0.5}, "'main' cannot be the name of a part"),
        ({"a b": 1}, "'a b' cannot be the name of a part"),
        ({}, "at least 1 item"),
        ({"a": 0}, "greater than"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Split.model_validate({"input": "$x", "parts": parts})


# --- in a recipe ------------------------------------------------------------------------------------------------------

RECIPE = """\
name: r
models: {base: {path: base, template: chatml}}
data: {d: {path: d.jsonl}}
stages:
  parts: {type: split, input: $d, parts: {train: 0.5, test: 0.5}}
"""


def graph(folder: Path, more: str) -> Graph:
    (folder / "base").mkdir(exist_ok=True)
    (folder / "d.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n' * 2)
    (folder / "r.yaml").write_text(RECIPE + more)
    return build(validate(read_tree(folder / "r.yaml", ())))


SFT = "  tuned: {type: train.sft, init: $base, chats: $parts.train}\n"
AGAIN = "  again: {type: split, input: $parts.train, parts: {a: 1}}\n"
REWARD = "  rm: {type: train.reward, init: $base, pairs: $again.a}\n"
SOME = "  some: {type: select, input: $parts.test}\n"
OTHER = "  s: {type: split, input: $some, parts: {a: 1}}\n"
CIRCLE = "  s: {type: split, input: $t.a, parts: {a: 1}}\n  t: {type: split, input: $s.a, parts: {a: 1}}\n"


@pytest.mark.parametrize(("more", "kind"), [("", "prompts"), (SFT, "chats"), (AGAIN + REWARD, "pairs")])
def test_data_is_read_as_what_the_readers_of_its_parts_need(tmp_path, more, kind):
    found = graph(tmp_path, more)
    assert kinds_of(found.nodes["d"].settings)["main"] == kind
    assert kinds_of(found.nodes["parts"].settings) == {"train": kind, "test": kind}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (SFT.replace("parts.train", "parts"), r"stage parts has no output '\$parts'; .*\$parts\.train"),
        (SFT.replace("parts.train", "s.a") + OTHER + SOME, r"tuned\.chats: needs chats, but \$s\.a gives prompts"),
        (
            OTHER.replace("split,", "split, kind: chats,") + SOME,
            r"stages\.s: all records must be of one kind, but \$some gives prompts, kind is chats",
        ),
        (CIRCLE, "wait for each other"),
        (OTHER.replace("$some", "$base"), r"stages\.s\.input: needs prompts or .* \$base gives model"),
    ],
)
def test_a_part_that_cannot_be_read_so_is_refused(tmp_path, more, message):
    with pytest.raises(RecipeError, match=message):
        graph(tmp_path, more)


def test_parts_are_made_and_shown_as_a_user_does_it(tmp_path):
    rows = [json.dumps({"question": f"Question {i}?"}) for i in range(20)]
    (tmp_path / "d.jsonl").write_text("\n".join(rows))
    text = "name: r\ndata: {d: {path: d.jsonl}}\nstages:\n  parts: {type: split, input: $d, parts: PARTS}\n"
    (tmp_path / "r.yaml").write_text(text.replace("PARTS", "{train: 0.9, test: 0.1}") + SOME)
    recipe, home = str(tmp_path / "r.yaml"), tmp_path / "home"
    ended = togi(home, "run", recipe)
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(togi(home, "show", recipe, "parts.train", "--json", "-n", "99").stdout)["records"]) == 18
    assert len(json.loads(togi(home, "show", recipe, "some", "--json", "-n", "99").stdout)["records"]) == 2
    shown = togi(home, "show", recipe, "parts")
    assert shown.returncode == 2 and "has no output 'main'" in shown.stderr and "train, test" in shown.stderr
    assert "parts" in togi(home, "plan", recipe).stdout
