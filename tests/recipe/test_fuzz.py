"""Recipes and overrides that no one would write: whatever they contain, only togi's own errors are raised, and quickly.

TOGI_FUZZ=N tries N random cases of each kind instead of the same few hundred each time.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import RECIPES

from togi.core.errors import TogiError
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

CASES = int(os.environ.get("TOGI_FUZZ", "0"))
LIMIT = 5.0  # seconds of CPU time, which other processes do not affect; a case takes some milliseconds
FUZZ = settings(
    max_examples=CASES or 300,
    derandomize=not CASES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SHIPPED = RECIPES
NAMES = ("quickstart.yaml", "examples/chain.yaml", "examples/grpo.yaml", "examples/pretrain.yaml", "examples/smpo.yaml")
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e300, float("inf"), float("nan"), 2**63 - 1, 2**63, 10**30),
    *("", " ", "$", "$$", "$base", "$seeds", "$nothing", "$a b", "a", "1", "1,5", "true", "null", "~", "~nosuchuser/x"),
    *("\x00", "\x1b[31m", "\ud800", "²", "\u202e", "\ufeff", "é" * 200, "x" * 5000, "..", ".", "a/b", "a\x00b", "*"),
    *("{}", "[]", "{{ x }}", "{% for %}", "auto", "local", "hub", "pipe", "circle", "/dev/zero", "a:b", "-", "type"),
    *([], {}, [None], [[]], {"": None}, {"type": None}, {"a": {"b": {"c": 1}}}, [1, "a", None, {}], ["$base"]),
)
SNIPPETS = (
    *("&a ", "*a", "<<: *a\n", "<<: {a: 1}", "!!str ", "!!python/object:os.system ", "!!binary ", "!!set ", "!x "),
    *("---\n", "...\n", "%YAML 1.1\n---\n", "%TAG ! x\n", "? ", ": ", "- ", "\t", "\n", " ", "|\n", ">-\n", "'", '"'),
    *("[", "]", "{", "}", ",", "#", "~", "null", ".inf", ".nan", "0x", "1e999", "9" * 5000, "1_0", "2024-01-01"),
    *("[" * 200, "{a: " * 200, "&a [*a]", "extends: r.yaml\n", "extends: gone.yaml\n", "extends: [1]\n", "\\U00110000"),
    *("\x00", "\x1b", "\x85", "\u2028", "\ufeff", "\ud800", "研", "$base", "stages:\n", "models:\n", "name: x\n"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shipped recipes with their data, a pipe and a circular link. It is also the working directory."""
    made = tmp_path_factory.mktemp("fuzz") / "recipes"
    shutil.copytree(SHIPPED, made)
    for place in (made, made / "examples"):
        os.mkfifo(place / "pipe")
        (place / "circle").symlink_to("circle")
    with chdir(made):
        yield made


def refuse(number: int, frame: FrameType | None) -> None:
    raise AssertionError("this takes for ever")


@contextmanager
def soon() -> Iterator[None]:
    """Fails if the block takes more CPU time than LIMIT, and interrupts it if it hangs or waits."""
    signal.signal(signal.SIGALRM, refuse)
    signal.alarm(60)
    start = time.process_time()
    yield
    signal.alarm(0)
    assert time.process_time() - start < LIMIT


def attempt(path: Path, *overrides: str) -> None:
    """Reads, validates and orders a recipe: either it is usable, or togi's own error says why not."""
    with soon():
        try:
            build(validate(read_tree(path, overrides)))
        except TogiError as error:
            assert str(error).strip()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in items:
        found += [(*path, key), *places(item, (*path, key))]
    return found


def twisted(value: Any, draw: random.Random) -> Any:
    """`value` with one change inside: something dropped, replaced, wrapped, renamed, moved or repeated."""
    if not (found := places(value)):
        return draw.choice(ODD)
    *above, last = draw.choice(found)
    target = value
    for part in above:
        target = target[part]
    what = draw.choice(("drop", "replace", "replace", "wrap", "list", "rename", "move"))
    if what == "drop":
        del target[last]
    elif what == "rename" and isinstance(target, dict):
        target[str(draw.choice((f"{last}x", str(last)[1:], *(o for o in ODD if isinstance(o, str)))))] = target.pop(
            last
        )
    elif what == "move":
        other = value
        for part in draw.choice(found):
            other = other[part] if not isinstance(other, str) else other
        target[last] = json.loads(json.dumps(other))
    else:
        wrapped = {"wrap": {draw.choice(("a", "type", "path")): target[last]}, "list": [target[last], None]}
        target[last] = wrapped.get(what, draw.choice(ODD))
    return value


@cache
def _plain(path: Path) -> str:
    return json.dumps(read_tree(path).values)


def plain(path: Path) -> Any:
    """A recipe's values as plain data, to be changed freely."""
    return json.loads(_plain(path))


def as_yaml(value: Any) -> str:
    """JSON is valid YAML, except for the names of infinity and NaN."""
    return json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")


@FUZZ
@given(name=st.sampled_from(NAMES), draw=st.randoms(use_true_random=False), count=st.integers(1, 4))
def test_recipes_whose_structure_is_changed(folder: Path, name: str, draw: random.Random, count: int) -> None:
    value = plain(folder / name)
    for _ in range(count):
        value = twisted(value, draw)
    path = (folder / name).with_name("twisted.yaml")
    path.write_text(as_yaml(value))
    attempt(path)


@FUZZ
@given(name=st.sampled_from(NAMES), draw=st.randoms(use_true_random=False), count=st.integers(1, 5))
def test_recipes_whose_text_is_changed(folder: Path, name: str, draw: random.Random, count: int) -> None:
    data = bytearray((folder / name).read_bytes())
    for _ in range(count):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice((0, 0, 1, 2, 10, 100)))
        piece = draw.choice(SNIPPETS).encode("utf-8", "surrogatepass")
        data[start:stop] = draw.choice((piece, piece, b"", bytes([draw.randrange(256)]), data[stop : stop + 50]))
    path = (folder / name).with_name("changed.yaml")
    path.write_bytes(data)
    attempt(path)


@FUZZ
@given(
    pieces=st.lists(st.sampled_from((*SNIPPETS, *"abc:-[]{},\n  '\"&*!|>%@`?#0.")) | st.text(max_size=5), max_size=40)
)
def test_text_of_pieces_of_yaml(folder: Path, pieces: list[str]) -> None:
    path = folder / "pieces.yaml"
    path.write_bytes("".join(pieces).encode("utf-8", "surrogatepass"))
    attempt(path)


@FUZZ
@given(data=st.binary(max_size=200))
def test_bytes(folder: Path, data: bytes) -> None:
    path = folder / "bytes.yaml"
    path.write_bytes(data)
    attempt(path)


@FUZZ
@given(name=st.sampled_from(NAMES), draw=st.randoms(use_true_random=False), count=st.integers(1, 3))
def test_overrides(folder: Path, name: str, draw: random.Random, count: int) -> None:
    found = places(plain(folder / name))
    overrides = []
    for _ in range(count):
        parts = [str(part) for part in draw.choice(found)]
        if draw.random() < 0.5:
            parts.insert(
                draw.randrange(len(parts) + 1), draw.choice(("²", "-1", "0", "99", "", "x", "null", "\udcff", "9" * 99))
            )
        value = draw.choice(
            (as_yaml(draw.choice(ODD)), draw.choice(SNIPPETS), draw.choice(SNIPPETS) + draw.choice(SNIPPETS))
        )
        overrides.append(".".join(parts) + draw.choice(("=", "=", "=", "=", "")) + value)
    attempt(folder / name, *overrides)


@FUZZ
@given(name=st.text(max_size=300) | st.sampled_from([o for o in ODD if isinstance(o, str)]))
def test_paths_of_recipes(folder: Path, name: str) -> None:
    attempt(folder / name)
    path = folder / "extends.yaml"
    path.write_text(json.dumps({"extends": name}))
    attempt(path)
