"""A stage consists of two files and one line, and no code outside these files tests which stage it handles."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import environment

import togi
from togi.stages.base import StageSettings
from togi.stages.cost import Cost, Known
from togi.stages.table import STAGES

ROOT = Path(togi.__file__).parent

SETTINGS = '''\
"""`halve`: the first half of the prompts, and the rest."""

from typing import Literal

from togi.core.settings import PromptsRef
from togi.stages.base import StageSettings, StageType, gives
from togi.stages.cost import Cost, Inputs


class Halve(StageSettings):
    """Two halves."""

    type: Literal["halve"] = "halve"
    input: PromptsRef


def estimate(settings: Halve, inputs: Inputs) -> Cost:
    return Cost(records=(inputs[settings.input].records or 0) // 2, calls=3, notes=["halves"])


STAGE = StageType(
    "halve",
    Halve,
    outputs=gives("prompts", rest="prompts"),
    work="togi.stages.data.halve_work",
    reasons=("odd",),
    estimate=estimate,
)
'''
WORK = '''\
"""The work of `halve`."""

from togi.stages.context import Context
from togi.stages.data.halve import Halve


def run(settings: Halve, context: Context) -> None:
    records = context.records(settings.input)
    context.count_in(len(records))
    half = len(records) // 2
    context.write("prompts", records[:half])
    context.write("prompts", records[half : 2 * half], "rest")
    for record in records[2 * half :]:
        context.drop(record, "odd")
'''
RECIPE = """\
name: toy
data:
  questions: {path: questions.jsonl, licence: CC-BY, terms: for safety only, inherit: true}
stages:
  halves: {type: halve, input: $questions}
  some: {type: select, input: $halves.rest, shuffle: false}
"""
LINE, FIRST = "    importing.STAGE,\n", "from togi.core.records import KINDS\n"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package with one more stage: two files and one line in the table."""
    shutil.copytree(ROOT, tmp_path / "src" / "togi")  # including compiled Python files
    stages = tmp_path / "src" / "togi" / "stages"
    (stages / "data" / "halve.py").write_text(SETTINGS)
    (stages / "data" / "halve_work.py").write_text(WORK)
    table = stages / "table.py"
    text = table.read_text()
    assert LINE in text and FIRST in text
    text = text.replace(FIRST, f"{FIRST}from togi.stages.data import halve\n")
    text = text.replace(LINE, f"{LINE}    halve.STAGE,\n")
    table.write_text(text)
    rows = [json.dumps({"question": f"Question {i}?"}) for i in range(7)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path


def ask(house: Path, *words: str) -> str:
    """Returns what togi prints in the copy with the new stage."""
    command = [sys.executable, "-m", "togi", *words]
    env = environment(house / "home", PYTHONPATH=str(house / "src"))
    ended = subprocess.run(command, env=env, cwd=house, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_new_stage_is_two_files_and_one_line(house):
    planned = {row["stage"]: row["estimate"] for row in json.loads(ask(house, "plan", "toy.yaml", "--json"))}
    assert (planned["halves"]["records"], planned["halves"]["calls"]) == (3, 3)
    assert planned["some"]["unknown"] == ["unknown until halves ran"]  # plan says nothing about its second output
    assert json.loads(ask(house, "check", "toy.yaml", "--json"))["problems"] == []
    ask(house, "run", "toy.yaml", "--threads", "1")
    main, rest = (
        [row["messages"][0]["content"] for row in json.loads(ask(house, "show", "toy.yaml", name, "--json"))["records"]]
        for name in ("halves", "halves.rest")
    )
    assert main == [f"Question {i}?" for i in range(3)] and rest == [f"Question {i}?" for i in range(3, 6)]
    (chosen,) = (house / "home" / "store").glob("select-*")
    assert [name.rpartition("/")[2] for name in json.loads((chosen / "made_from.json").read_text())["made_from"]] == [
        "rest"
    ]
    ask(house, "report", "toy.yaml")
    page = (house / "home" / "runs" / "toy" / "report.html").read_text()
    assert "halves" in page and "odd" in page and "count of rest" in page
    assert "halve" in ask(house, "list")
    rows = {row["stage"]: row for row in json.loads(ask(house, "show", "toy.yaml", "--json"))}
    assert {name: [row["in"], row["out"], row["drops"]] for name, row in rows.items()} == {
        "questions": [7, 7, {}],
        "halves": [7, 3, {"odd": 1}],
        "some": [3, 3, {}],
    }
    bound = {"dataset": "questions.jsonl", "licence": "CC-BY", "terms": "for safety only", "inherit": True}
    sources = [source | bound for row in rows.values() for source in row["sources"]]
    assert [source["records"] for source in sources] == [7, 3, 3] and sources == [
        source for row in rows.values() for source in row["sources"]
    ]
    assert "Binding terms" in page and "for safety only" in page
    record = json.loads(ask(house, "show", "toy.yaml", "halves.rest", "--json"))["records"][0]["id"]
    life = ask(house, "trace", "toy.yaml", record[:8])
    assert "Question 3?" in life and life.count("passed on") == 2


# --- no code tests which stage it handles -----------------------------------------------------------------------------


def settings_names() -> list[str]:
    """Returns the names of all settings classes of stages, including base classes."""
    classes = [each for stage in STAGES.values() for each in stage.settings.__mro__]
    return list(dict.fromkeys(each.__name__ for each in classes if issubclass(each, StageSettings)))


def asked_for(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the classes of an isinstance, issubclass or case, and both sides of a comparison."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        yield from ast.walk(node.args[1])
    elif isinstance(node, ast.MatchClass):
        yield from ast.walk(node.cls)
    elif isinstance(node, ast.Compare):
        yield from (part for side in (node.left, *node.comparators) for part in ast.walk(side))


def is_type(part: ast.AST) -> bool:
    """Whether an expression is `x.type`, `x["type"]` or `x.get("type")`."""
    if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "get" and part.args:
        part = ast.Subscript(part.func.value, part.args[0])
    if isinstance(part, ast.Subscript):
        return isinstance(part.slice, ast.Constant) and part.slice.value == "type"
    return isinstance(part, ast.Attribute) and part.attr == "type"


def told_apart(node: ast.AST) -> Iterator[ast.AST]:
    """Yields both sides of a comparison with a type, the words with which it begins or ends, the cases of a match on
    it, and the keys of a table that it selects from."""
    if isinstance(node, ast.Compare) and any(map(is_type, (node.left, *node.comparators))):
        yield from (part for side in (node.left, *node.comparators) for part in ast.walk(side))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_type(node.func.value):
        yield from (part for side in node.args for part in ast.walk(side))
    elif isinstance(node, ast.Match) and is_type(node.subject):
        yield from (part for case in node.cases for part in ast.walk(case.pattern))
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict) and is_type(node.slice):
        yield from (part for key in node.value.keys if key is not None for part in ast.walk(key))


def dispatches(tree: ast.AST) -> list[int]:
    """Returns the lines that test for a settings class, or compare with the name of a stage type. A name without a dot
    may mean something else, and counts only next to a type."""
    names, types = settings_names(), [name for name in STAGES if "." in name or name == "import"]
    return [
        node.lineno  # type: ignore[attr-defined]
        for node in ast.walk(tree)
        for word, parts in ((types, asked_for(node)), ([*STAGES, "train."], told_apart(node)))
        for part in parts
        if (isinstance(part, ast.Name) and part.id in names) or (isinstance(part, ast.Constant) and part.value in word)
    ]


def trees() -> dict[str, ast.AST]:
    """Returns the syntax trees of all files of the package, by path within the package."""
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(ROOT.rglob("*.py"))}


def test_nobody_dispatches_on_stages():
    assert [f"{name}:{line}" for name, tree in trees().items() for line in dispatches(tree)] == []


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(settings, TrainGrpo)",
        "isinstance(settings, Curate | Select)",
        "settings.type == 'train.reward'",
        "kind in ('import', 'x')",
        "settings.type == 'evaluate'",
        "'decontaminate' != stage['type']",
        "stage.get('type') in ('x', 'select')",
        "stage.type.startswith('train.')",
        "match stage.type:\n    case 'curate' | 'x': pass",
        "{'score': 1}[stage['type']]",
        "match settings:\n    case Import(): pass",
    ],
)
def test_the_scan_catches(source: str):
    assert dispatches(ast.parse(source))


OWN = ("stages/data/", "stages/training/", "stages/evaluation/")


def test_settings_of_a_stage_stay_in_its_room():
    """The table names the modules; all other code asks the StageType."""
    concrete = [stage.settings.__name__ for stage in STAGES.values()]
    imported = [
        f"{name}: {alias.name}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        for alias in (node.names if isinstance(node, ast.ImportFrom) else ())
        if alias.name in concrete and not name.startswith(OWN)
    ]
    assert imported == []


# --- costs ------------------------------------------------------------------------------------------------------------


class Few:
    """Inputs that are known to hold seven records."""

    def __init__(self) -> None:
        self.takers: dict[str, list[str]] = {}

    def __getitem__(self, ref):
        return Known(records=7)

    def lengths(self, refs, model, cost):
        return None


@pytest.mark.parametrize(
    ("kind", "settings", "records"),
    [
        ("select", {"input": "$x", "skip": 5}, 2),
        ("select", {"input": "$x", "skip": 5, "count": 1}, 1),
        ("select", {"input": "$x", "skip": 9, "count": 1}, 0),
        ("diversify", {"input": "$x", "keep": 3}, 3),
        ("contrast", {"input": "$x", "model": "$m", "off_topic": True}, 14),
        ("synthesize", {"examples": "$x", "model": "$m", "count": 40}, 40),
    ],
)
def test_a_stage_bounds_its_own_records(kind, settings, records):
    stage = STAGES[kind]
    cost = stage.estimate(stage.settings.model_validate(settings), Few())
    assert cost.records == records


def test_what_is_told_of_a_cost_leaves_out_what_only_plan_reads():
    assert {"load", "outputs"} & Cost().to_json().keys() == set() and Cost(money=1.5).to_json()["money"] == 1.5
