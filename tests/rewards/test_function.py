"""Reward functions in a user's file: imports of neighbouring files, and TRL's signature."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from togi.core.code import neighbours
from togi.core.errors import GraderError, InputError, StageError
from togi.core.records import Completion, Message, Prompt
from togi.objectives.advantages import compute_advantages
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.rewards.base import Attempt
from togi.rewards.build import RewardResources, build_reward
from togi.rewards.columns import Columns, columns_of
from togi.rewards.combine import Reward
from togi.rewards.function import FunctionGrader, TrlGrader, load_function, load_grader
from togi.rewards.settings import RewardSettings
from togi.rewards.statistics import reward_statistics


def write(folder: Path, **files: str) -> Path:
    """Writes modules, given by name without .py, and returns the path of f.py."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "f.py"


def attempt(answer: str = "four", number: int = 0, **extra: Any) -> Attempt:
    prompt = Prompt(id=f"p{number}", messages=(Message("user", "2+2?"),), answer="4", extra=extra)
    completion = Completion(text=f"{answer}</s>", stop="terminator", token_ids=(5, 6))
    return Attempt(prompt=prompt, completion=completion, answer=answer)


def graded(file: Path, *attempts: Attempt, style: str = "togi") -> list[Any]:
    function = load_function(file, "f", style)
    grader = FunctionGrader(function=function) if style == "togi" else TrlGrader(function=function)
    return [str(grade) if isinstance(grade, GraderError) else grade for grade in grader(attempts)]


LAZY = "def f(prompt, completion):\n    import helper\n    return helper.VALUE\n"
EAGER = "from helper import VALUE\ndef f(prompt, completion):\n    return VALUE\n"


@pytest.mark.parametrize("text", [LAZY, EAGER])
def test_two_files_each_find_their_own_neighbour_and_nobody_else_finds_any(tmp_path, text):
    files = [write(tmp_path / name, f=text, helper=f"VALUE = {i}.0") for i, name in enumerate("ab")]
    functions = [load_function(file, "f") for file in files]
    before = list(sys.path)
    for _ in range(2):
        assert [function(None, None) for function in functions] == [0.0, 1.0]
    assert "helper" not in sys.modules and sys.path == before
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["f.py", "helper.py"]  # no __pycache__


def test_a_neighbour_keeps_its_state_between_calls(tmp_path):
    text = "def f(prompt, completion):\n    import helper\n    helper.seen.append(1)\n    return len(helper.seen)\n"
    file = write(tmp_path, f=text, helper="seen = []")
    assert graded(file, attempt(), attempt()) == [1.0, 2.0]


def test_a_neighbour_comes_before_a_library_of_its_name_which_stays(tmp_path, monkeypatch):
    library = type(sys)("helper")
    monkeypatch.setitem(sys.modules, "helper", library)
    assert graded(write(tmp_path, f=EAGER, helper="VALUE = 3.0"), attempt()) == [3.0]
    assert sys.modules["helper"] is library


def test_libraries_that_a_file_is_first_to_import_stay(tmp_path, monkeypatch):
    """This holds also for libraries of an environment inside the folder."""
    text = "from newlib import VALUE\ndef f(prompt, completion):\n    return VALUE\n"
    write(tmp_path, **{"venv/newlib": "VALUE = 5.0", "f": text})
    monkeypatch.syspath_prepend(tmp_path / "venv")
    assert graded(tmp_path / "f.py", attempt()) == [5.0]
    assert sys.modules.pop("newlib").VALUE == 5.0


PACKAGE = {
    "f": "import json, os.path\nfrom pkg.deep import one\nimport spaced.far\nfrom .beside import x\n",
    "pkg/__init__": "",
    "pkg/deep/__init__": "from . import two\nfrom ..other import *\n",
    "pkg/deep/one": "",
    "pkg/deep/two": "import importlib\nimportlib.import_module('named')\n",
    "pkg/other": "",
    "pkg/unused": "",
    "spaced/far": "import f\n",
    "beside": "def broken(:\n",
    "named": "",
    "unused": "",
}


def test_the_neighbours_are_what_import_statements_lead_to(tmp_path):
    found = [str(path.relative_to(tmp_path)) for path in neighbours(write(tmp_path, **PACKAGE))]
    assert found == [
        "beside.py",
        "named.py",
        "pkg/__init__.py",
        "pkg/deep/__init__.py",
        "pkg/deep/one.py",
        "pkg/deep/two.py",
        "pkg/other.py",
        "spaced/far.py",
    ]


@pytest.mark.parametrize("text", ["def f(:\n", "x = '\0'\n", "(" * 5000, "\xff", ""])
def test_a_file_that_is_no_python_has_no_neighbours(tmp_path, text):
    (tmp_path / "f.py").write_text(text, encoding="latin-1")
    assert neighbours(tmp_path / "f.py") == []


RECIPE = """
name: r
models: {base: {package: numpy}}
data: {d: {path: d.jsonl}}
stages:
  policy: {type: train.grpo, init: $base, prompts: $d, reward: {terms: [{type: function, file: f.py, name: f}]}}
"""


def test_neighbours_count_in_the_fingerprint(tmp_path):
    write(tmp_path, f=EAGER, helper="VALUE = 1", unused="")
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "d.jsonl").write_text("{}")

    def mark() -> str:
        return build(validate(read_tree(tmp_path / "r.yaml", ()))).nodes["policy"].fingerprint

    first = mark()
    write(tmp_path, unused="VALUE = 2")
    assert mark() == first
    write(tmp_path, helper="VALUE = 2")
    assert mark() != first


HIDDEN = "import importlib\ndef f(prompt, completion):\n    return importlib.import_module('hel' + 'per').VALUE\n"


def test_an_import_that_nobody_can_see_before_it_runs_is_refused(tmp_path):
    file = write(tmp_path, f=HIDDEN, helper="VALUE = 1")
    assert "imports helper in a way that togi cannot see" in graded(file, attempt())[0]
    write(tmp_path, f=f"{HIDDEN}\nf(1, 2)\n")
    with pytest.raises(InputError, match="name it in an import statement of that file"):
        load_function(file, "f")


TRL = """
seen = []

def f(prompts, completions, completion_ids=None, **columns):
    seen.append((prompts, completions, completion_ids, columns))
    return [float(len(turns[0]["content"])) for turns in completions]
"""


def test_a_function_of_trl_is_asked_once_about_all(tmp_path):
    file = write(tmp_path, f=TRL)
    grader = TrlGrader(function=(function := load_function(file, "f", "trl")))
    assert grader([attempt("four", level=1), attempt("5", 1, source="s")]) == [4.0, 1.0]
    ((prompts, completions, ids, columns),) = function.function.__globals__["seen"]
    assert prompts == [[{"role": "user", "content": "2+2?"}]] * 2
    assert completions == [[{"role": "assistant", "content": text}] for text in ("four", "5")]
    assert ids == [[5, 6], [5, 6]]
    assert columns == {"answer": ["4", "4"], "level": [1, None], "source": [None, "s"]}


def test_a_function_of_trl_may_take_part_of_it_and_give_an_array(tmp_path):
    text = "import numpy as np\ndef f(completions, answer):\n    return np.ones(len(answer), dtype=np.float32)\n"
    assert graded(write(tmp_path, f=text), attempt(), attempt(), style="trl") == [1.0, 1.0]


def test_plain_texts_where_they_are_asked_for(tmp_path):
    text = "def f(prompts, completions, **columns):\n    return [len(p + c) for p, c in zip(prompts, completions)]\n"
    term = {"type": "function", "file": str(write(tmp_path, f=text)), "name": "f", "style": "trl-text"}
    reward = build_reward(RewardSettings.model_validate({"terms": [term]}), RewardResources(terminator="</s>"))
    one = attempt("four")
    assert [row.total for row in reward.grade(one.prompt, [one.completion])] == [8.0]


@pytest.mark.parametrize(
    ("result", "grades"),
    [
        ("[1.0, '2.0']", [1.0, "expected a number, got str (prompt p1)"]),
        (
            "[10 ** 400, 'x']",
            ["OverflowError: int too large to convert to float", "expected a number, got str"],
        ),
        (
            "[1.0]",
            ["it returned 1 results for 2 answers (prompt p0)", "it returned 1 results"],
        ),
        ("None", ["TypeError: 'NoneType' object is not iterable (prompt p0)", "TypeError"]),
        ("exit(2)", ["SystemExit: 2, at ", "SystemExit: 2, at "]),
    ],
)
def test_what_a_function_of_trl_withholds_is_a_failure(tmp_path, result, grades):
    file = write(tmp_path, f=f"def f(completions, **columns):\n    return {result}\n")
    found = graded(file, attempt(), attempt(number=1), style="trl")
    for grade, wanted in zip(found, grades, strict=True):
        assert grade == wanted if isinstance(wanted, float) else grade.startswith(wanted)


APPLIES = """
def f(prompts, completions, kind, **columns):
    return [1.0 if each == "sum" else None for each in kind]

def g(prompts, completions, **columns):
    return [None if turns[0]["content"] == "skip" else 0.5 for turns in completions]

def broken(prompts, completions, **columns):
    return [float("nan")] * len(completions)
"""


def trl_reward(file: Path, *names: str, **more: Any) -> Reward:
    terms = [{"type": "function", "file": str(file), "name": name, "style": "trl"} for name in names]
    return build_reward(RewardSettings.model_validate({"terms": terms, **more}), RewardResources(terminator="</s>"))


def totals(reward: Reward, *attempts: Attempt) -> list[float | None]:
    rows = [row for one in attempts for row in reward.grade(one.prompt, [one.completion])]
    reward.check_failures(rows)
    return [row.total for row in rows]


def test_a_function_of_trl_adds_nothing_to_rows_that_it_returns_none_for(tmp_path):
    reward = trl_reward(write(tmp_path, f=APPLIES), "f", "g")
    assert totals(reward, attempt(kind="sum"), attempt(kind="poem"), attempt("skip", kind="sum")) == [1.5, 0.5, 1.0]


def test_an_answer_that_no_function_applies_to_leaves_its_group_and_is_no_failure(tmp_path):
    reward = trl_reward(write(tmp_path, f=APPLIES), "f", "g")
    one = attempt("skip", kind="poem")
    others = [Completion(text=f"{text}</s>", stop="terminator", token_ids=(5,)) for text in ("a", "b")]
    rows = reward.grade(one.prompt, [one.completion, *others])
    reward.check_failures(rows)
    assert [row.total for row in rows] == [None, 0.5, 0.5] and rows[0].failed is None
    assert rows[0].components == {"f": None, "g": None}
    found = reward_statistics(rows)
    assert (found.failed_share, found.ungraded_share, found.gate_pass_rate) == (0.0, 1 / 3, 1.0)
    assert compute_advantages([[0.0, None, 1.0]]).values[0] == pytest.approx((-0.70701, None, 0.70701), abs=1e-4)


def test_gates_grade_what_no_function_applies_to(tmp_path):
    gate = {"type": "terminator", "bonus": 6.0}
    reward = trl_reward(write(tmp_path, f=APPLIES), "f", gates=[gate])
    assert totals(reward, attempt(kind="sum"), attempt(kind="poem")) == [7.0, 6.0]


def test_a_function_of_trl_that_returns_nan_has_failed(tmp_path):
    with pytest.raises(StageError, match="1 of 1 answers could not be graded"):
        totals(trl_reward(write(tmp_path, f=APPLIES), "g", "broken"), attempt(kind="sum"))


ASKS = """
def needs(completions, answer):
    return [float(turns[0]["content"] == each) for turns, each in zip(completions, answer)]

def may(completions, answer=("none",), level=0, **columns):
    return [float(len(answer)) for turns in completions]

def level(completions, level, *, kind):
    return [0.0 if each is None else float(each) for each in level]
"""
ROWS = [Columns(names=("kind",), count=3)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "needs",
            r"f\.py: needs asks for `answer`, and none of the 3 rows has one \(the other .*`columns: \{answer: NAME\}`",
        ),
        ("level", r"f\.py: level asks for `level`, and none of the 3 rows has a column of that name \(the other colu"),
    ],
)
def test_a_function_of_trl_that_needs_what_no_row_has_is_refused(tmp_path, name, message):
    file = write(tmp_path, f=ASKS)
    with pytest.raises(InputError, match=message):
        load_grader(file, name, "trl", columns=ROWS)
    with pytest.raises(InputError, match="none of the 2 validation rows"):
        load_grader(file, name, "trl", columns=[Columns(names=("answer", "level", "kind"), count=9), validation()])
    load_grader(file, name, "trl")  # nothing is known of the rows


def validation() -> Columns:
    return Columns(names=(), count=2, rows="validation rows")


def test_rows_without_a_column_that_others_have_give_none(tmp_path):
    rows = [columns_of([attempt(level=2, kind="sum").prompt, attempt().prompt])]
    assert rows == [Columns(names=("level", "kind", "answer"), count=2)]
    grader = load_grader(write(tmp_path, f=ASKS), "level", "trl", columns=rows)
    assert [grader([attempt(level=2)]), grader([attempt()])] == [[2.0], [0.0]]


def test_a_column_that_no_row_has_leaves_the_default(tmp_path):
    file = write(tmp_path, f=ASKS)
    one = attempt()
    bare = Attempt(prompt=replace(one.prompt, answer=None), completion=one.completion, answer="four")
    assert load_grader(file, "may", "trl", columns=ROWS)([bare, bare, bare]) == [1.0] * 3
    assert load_grader(file, "may", "trl", columns=[columns_of([one.prompt])])([one, bare]) == [2.0] * 2


DEEP = """from helper import half

def f(prompt, completion):
    return sorted([2, half(completion.text)], key=lambda each: each / 0)
"""


def test_a_failure_says_where_in_the_users_files_it_arose(tmp_path, capfd):
    file = write(tmp_path, f=DEEP, helper="def half(text):\n    if text == 'bad':\n        int(text)\n    return 1\n")
    deep, here = graded(file, attempt("bad"), attempt("good"))
    assert deep == f"ValueError: invalid literal for int() with base 10: 'bad', at {tmp_path}/helper.py:3 (prompt p0)"
    assert here == f"ZeroDivisionError: division by zero, at {file}:4 (prompt p0)"
    traces = capfd.readouterr().err
    assert traces.count("Traceback") == 2 and f'File "{file}", line 4, in f' in traces and "strangers" not in traces


def test_a_file_that_does_not_load_says_the_line(tmp_path, capfd):
    file = write(tmp_path, f="import os\nos.environ['NOT_SET_ANYWHERE']\n")
    with pytest.raises(InputError, match=r"does not load: KeyError: 'NOT_SET_ANYWHERE', at \S+/f\.py:2$"):
        load_function(file, "f")
    assert capfd.readouterr().err == ""


def test_a_function_of_trl_that_is_not_said_to_be_one(tmp_path):
    with pytest.raises(InputError, match="set style: trl"):
        load_function(write(tmp_path, f=TRL), "f")
