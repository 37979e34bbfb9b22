"""Models and judges with stored answers: the run starts one server for all that use the same files."""

import json
from pathlib import Path

import pytest

from togi.core.errors import InputError, RecipeError
from togi.recipe.graph import Graph, build
from togi.recipe.model_services import services_of
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

RECIPE = """\
name: stored
models:
  judge: &stored {serve: {engine: replay, verdicts: [verdicts.jsonl], answers: [answers.jsonl]}}
  careful: {<<: *stored, model: careful}
  other: {serve: {engine: replay, verdicts: [verdicts.jsonl]}}
data:
  asked: {path: asked.jsonl}
stages:
  said: {type: respond, prompts: $asked, models: [$careful], samples: 2}
  judged: {type: label, samples: $said, judge: $judge}
  again: {type: label, samples: $said, judge: $other}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    verdict = {"question": "Why?", "answer_a": "So.", "answer_b": "Hm.", "text": "[[A]]"}
    (tmp_path / "verdicts.jsonl").write_text(json.dumps(verdict) + "\n")
    (tmp_path / "answers.jsonl").write_text('{"prompt": "Why?", "completion": "So.", "model": "careful"}\n')
    (tmp_path / "asked.jsonl").write_text('{"question": "Why?"}\n')
    return tmp_path


def graph(folder: Path, text: str = RECIPE) -> Graph:
    path = folder / "r.yaml"
    path.write_text(text)
    return build(validate(read_tree(path, ())))


def test_words_of_the_same_files_have_one_server(folder: Path) -> None:
    found = services_of(graph(folder), folder / "store")
    assert [(spec.name, spec.also, spec.stages) for spec in found] == [
        ("judge", ("careful",), ("said", "judged")),
        ("other", (), ("again",)),
    ]
    assert found[0].command[-2:] == ("--answers", str(folder / "answers.jsonl"))
    assert "togi.judge.replay" in found[1].command and "--answers" not in found[1].command


def test_other_words_are_another_model(folder: Path) -> None:
    first = graph(folder)
    judges = [first.endpoint("judge")]
    with (folder / "verdicts.jsonl").open("a") as file:
        file.write('{"question": "Who?", "answer": "Me.", "text": "[[5]]"}\n')
    second = graph(folder)
    marks = [[each.nodes[name].fingerprint for name in ("judged", "again")] for each in (first, second)]
    assert not {*marks[0]} & {*marks[1]}
    judges.append(second.endpoint("judge"))
    assert [each.model for each in judges if each] == ["replay", "replay"]
    assert len({each.revision for each in judges if each}) == 2


def test_files_that_are_gone_are_told(folder: Path) -> None:
    (folder / "answers.jsonl").unlink()
    with pytest.raises((InputError, RecipeError), match=r"answers\.jsonl: cannot be read: No such file"):
        graph(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{serve: {engine: replay}}", "engine replay needs `verdicts`"),
        ("{path: model, serve: {engine: togi, verdicts: [verdicts.jsonl]}}", "read only with engine: replay, found"),
        ("{serve: {engine: replay, verdicts: [verdicts.jsonl], args: [x]}}", "takes no `python` and no `args`"),
        (
            "{serve: {engine: replay, verdicts: [verdicts.jsonl], ready_seconds: 9}}",
            "ready_seconds is not read with engine: replay",
        ),
        (
            "{device: 'cuda:1', serve: {engine: replay, verdicts: [verdicts.jsonl]}}",
            "device is not read with engine: replay",
        ),
        (
            "{tokens: {add: [<x>]}, serve: {engine: replay, verdicts: [verdicts.jsonl]}}",
            "tokens are not read with engine: replay",
        ),
        (
            "{template: {file: t.jinja}, serve: {engine: replay, verdicts: [verdicts.jsonl]}}",
            r"template: \{file: .*t\.jinja\} is not read with engine: replay; use one of chatml",
        ),
        (
            "{path: model, serve: {engine: replay, verdicts: [verdicts.jsonl]}}",
            "replays stored answers, so package, hub, path, url",
        ),
        ("{url: 'http://a/v1', model: m, serve: {engine: replay, verdicts: [verdicts.jsonl]}}", "or set serve: null"),
        ("{kind: reward, serve: {engine: replay, verdicts: [verdicts.jsonl]}}", "url and kind cannot be set; remove"),
    ],
)
def test_entries_that_do_not_fit_are_refused(folder: Path, entry: str, message: str) -> None:
    text = RECIPE.replace("{serve: {engine: replay, verdicts: [verdicts.jsonl]}}", entry)
    with pytest.raises(RecipeError, match=message):
        graph(folder, text)


def test_stored_words_have_no_weights_to_train(folder: Path) -> None:
    trained = "  tuned: {type: train.sft, init: $judge, chats: $said}\n"
    with pytest.raises(RecipeError, match=r"\$judge replays stored answers and has no weights; training needs"):
        graph(folder, RECIPE + trained)
