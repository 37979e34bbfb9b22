"""Every import of the package follows the table of floors (docs/design.md, section 2)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import togi

FLOORS = {
    "core": 0,
    "text": 1,
    "client": 1,
    "kernels": 1,
    "model": 2,
    "objectives": 2,
    "data": 2,
    "rewards": 2,
    "judge": 2,
    "train": 3,
    "rollout": 3,
    "serve": 3,
    "evaluate": 3,
    "report": 3,
    "tracking": 3,
    "stages": 4,
    "recipe": 5,
    "commands": 6,
    "cli": 7,
}
TOP = 8  # __init__ and __main__ of the package itself
ALLOWED = {  # heavy libraries: the units that may import them
    "torch": (
        *("kernels", "model", "objectives", "train", "rollout"),
        *("serve", "evaluate", "tracking", "stages", "commands"),
    ),
    "transformers": ("model", "rollout"),
    "peft": ("model",),
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
ROOT = Path(togi.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(f.relative_to(ROOT)) for f in FILES]


def unit_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def floor_of(unit: str) -> int:
    return FLOORS[unit] if unit else TOP


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import; each `x` of `from togi import x` counts as togi.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "togi":
                yield from ((node.lineno, f"togi.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def complaints(unit: str, tree: ast.AST) -> list[str]:
    found = []
    for line, module in imports(tree):
        top, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        if top == "togi" and target in FLOORS and target != unit and floor_of(target) >= floor_of(unit):
            found.append(f"line {line}: {unit} (floor {floor_of(unit)}) imports {target} (floor {floor_of(target)})")
        if top in ALLOWED and unit not in ALLOWED[top]:
            found.append(f"line {line}: {unit} imports {top}")
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_go_down(path: Path) -> None:
    assert complaints(unit_of(path), ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_stand_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    every = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert [n.lineno for n in every if n not in top] == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > MAX_FUNCTION_LINES]
    assert long == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_set_is_iterated_as_it_stands(path: Path) -> None:
    """Catches the plain forms: a loop or comprehension over a set display or a call of set or frozenset."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        iterated = node.iter if isinstance(node, ast.For | ast.comprehension) else None
        called = isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Name) and iterated.func.id
        if isinstance(iterated, ast.Set | ast.SetComp) or called in ("set", "frozenset"):
            found.append(iterated.lineno)
    assert found == []


def test_every_unit_has_a_floor() -> None:
    units = [p.name for p in sorted(ROOT.iterdir()) if p.is_dir() and p.name != "__pycache__"]
    assert [u for u in units if u not in FLOORS] == []


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("core", "from togi.text.template import Template"),
        ("data", "from togi.model import load"),
        ("text", "import togi.client.chat"),
        ("stages", "from togi import recipe"),
        ("rewards", "import torch.nn"),
        ("train", "from transformers import AutoModel"),
    ],
)
def test_the_check_catches(unit: str, source: str) -> None:
    assert len(complaints(unit, ast.parse(source))) == 1
