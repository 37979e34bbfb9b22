"""The Python API: it is loaded on first use, and the examples of its page run."""

import re
import subprocess
import sys

import pytest
from places import ROOT
from tiny_run import environment, write_recipe

import togi
from togi.core.errors import InputError, RecipeError, TogiError
from togi.report.view import RunView, StageView

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_import_is_light_and_every_name_is_there():
    code = "import sys, togi\nprint([m for m in ('torch', 'pydantic', 'rich') if m in sys.modules])\n"
    code += "print([name for name in togi.API if getattr(togi, name) is None])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split("\n")[:2] == ["[]", "[]"]
    assert [name for name in togi.API if f"`togi.{name}" not in PAGE and name != "LoadedModel"] == []


def test_a_name_that_is_not_there_names_those_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'tune'; its Python API is: load, score, run"):
        getattr(togi, "tune")  # noqa: B009
    assert "load" in dir(togi)


def test_the_examples_of_the_page_run(tmp_path):
    write_recipe(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.S))
    code += "\nassert model.net.lm_head.weight.grad is not None and len(scores) == 2"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("done [") and float(lines[1]) == float(lines[1]) and float(lines[-1]) > 0


def test_words_of_the_command_line_and_values_by_key_mean_the_same(tmp_path):
    (tmp_path / "r.yaml").write_text("name: r\nstages: {}\n")
    for given in ("seeds=3", ["seeds=3"], {"seeds": 3}):
        with pytest.raises(RecipeError, match=r"command line \(seeds\): seeds: unknown key; did you mean 'seed'\?"):
            togi.run(tmp_path / "r.yaml", given)


@pytest.mark.parametrize(
    "wrong", ["What?", ("What?",), ("What?", 3), ([{"role": "user"}], "a"), (["What?"], "a"), (3, "a")]
)
def test_a_conversation_of_another_form_is_told_before_the_model_is_loaded(wrong):
    with pytest.raises(InputError, match=r"conversation 1: found .*, which is not a pair of messages and an answer"):
        togi.score("no-such-folder", [("What?", "That."), wrong])


def test_a_package_that_is_not_there_is_told():
    with pytest.raises(InputError, match="no-such-weights"):
        togi.load("package:no-such-weights")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: togi.load(None), "model: found None; give a model folder"),
        (lambda: togi.score(5, []), "model: found 5; give a model folder"),
        (lambda: togi.load(ROOT / "pyproject.toml"), "it is a file, not a model folder"),
        (lambda: togi.run({"name": "r"}), r"recipe: found \{'name': 'r'\}; give the path of a recipe"),
        (lambda: togi.run("r.yaml", 5), "overrides: found 5; give {key: value}, or texts KEY=VALUE"),
        (lambda: togi.run("r.yaml", [3]), r"overrides: found \[3\]"),
        (lambda: togi.run("r.yaml", until=["a"]), r"until: found \['a'\]; give the name of one stage"),
    ],
)
def test_arguments_of_another_kind_are_told(call, told):
    with pytest.raises(TogiError, match=told):
        call()


def test_help_and_a_star_import_have_every_name(capsys):
    help(togi)
    shown = capsys.readouterr().out
    assert "Runs the unfinished stages of a recipe" in shown and "The scores of a reward model" in shown
    taken: dict[str, object] = {}
    exec("from togi import *", taken)
    assert set(togi.API) <= set(taken)


def test_a_run_is_shown_in_a_line():
    stage = StageView(name="policy", type="train.dpo", state="done", metrics=[{"step": n} for n in range(900)])
    shown = repr(RunView(name="r", state="done", stages=[stage]))
    assert shown == "<run r: done, 0 before/after rows, 0 alarms, stages: policy>"
    assert repr(stage) == "<stage policy (train.dpo): done, metrics of 900 steps>"
