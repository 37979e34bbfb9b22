"""Tests use only what a user of the code can use: they contain no private name of togi."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
OF_OTHERS = ("_attn_implementation", "_model_mapping", "_exit", "_thread", "_python_dispatch", "_encode_pair")
OF_OTHERS += ("_new_process_group_helper", "_world")  # with which SGLang joins a group
"""Private names of other libraries that have no public equivalent."""
OF_PROCESSES = ("_execute_child", "_try_wait", "_internal_poll")
"""Private names of the standard library that tests/forked.py overrides."""


def private_names(tree: ast.AST) -> Iterator[str]:
    """Private attributes of anything but `self` and `cls`, and imported private names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not of_self(node) and is_private(node.attr):
            yield node.attr
        if isinstance(node, ast.ImportFrom):
            yield from (name.name for name in node.names if is_private(name.name))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_no_private_name_of_togi_stands_in_a_test():
    found = {
        (str(path.relative_to(TESTS)), name)
        for path in TESTS.rglob("*.py")
        for name in private_names(ast.parse(path.read_text()))
        if name not in (*OF_OTHERS, *OF_PROCESSES)
    }
    assert not found


def test_a_private_name_is_seen():
    assert list(private_names(ast.parse("from a import _b\nc._d()\nself._e = 1\nf.__class__"))) == ["_b", "_d"]
