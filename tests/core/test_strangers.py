"""The boundary around code unknown to togi."""

import ast
import sys
from pathlib import Path

import pytest

import togi
from togi.core.errors import GraderError, InputError, Interrupted
from togi.core.strangers import SHOWN, run_stranger

BROAD = ("Exception", "BaseException")


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no message")


def raising(error: BaseException):
    def call():
        raise error

    return call


def deep(n: int) -> int:
    return deep(n + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (raising(KeyError("x")), "here: KeyError: 'x'"),
        (raising(MemoryError()), "here: MemoryError"),
        (raising(GeneratorExit()), "here: GeneratorExit"),
        (raising(GraderError("no reference")), "here: GraderError: no reference"),
        (raising(Mute()), r"here: Mute: \(its message cannot be shown\)"),
        (lambda: sys.exit(0), "here: SystemExit: 0"),
        (lambda: exit(3), "here: SystemExit: 3"),
        (lambda: sys.exit(), "here: SystemExit"),
        (lambda: deep(0), "here: RecursionError: maximum recursion depth"),
    ],
)
def test_whatever_a_stranger_raises_is_an_error_of_ours(call, message):
    with pytest.raises(InputError, match=f"^{message}"):
        run_stranger(call, InputError, "here")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stopped")])
def test_a_wish_to_stop_passes(error):
    with pytest.raises(type(error)):
        run_stranger(raising(error), InputError, "here")


def test_what_a_stranger_returns_is_given_and_a_long_message_is_cut():
    assert run_stranger(lambda: 3, InputError, "here") == 3
    with pytest.raises(InputError) as found:
        run_stranger(raising(ValueError("x" * 10**6)), InputError, "here")
    assert len(str(found.value)) < SHOWN + 100


def test_nothing_else_catches_what_it_cannot_name():
    found = []
    for path in sorted(Path(togi.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and names(node.type) & {*BROAD, ""}:
                found.append(path.name)
    assert found == ["strangers.py", "strangers.py"]


def names(node: ast.expr | None) -> set[str]:
    """Names of the exceptions that a handler catches; an empty name for `except:`."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return {part.id if isinstance(part, ast.Name) else "" if part is None else "?" for part in parts}
