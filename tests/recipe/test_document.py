"""Valid content of a recipe file; nothing else is accepted, takes long or ends in an error other than togi's own."""

import os
import socket
import time
from pathlib import Path

import pytest

from togi.core.errors import RecipeError
from togi.core.settings import RecipePath
from togi.recipe.document import MAX_BYTES, MAX_DEPTH, MAX_FILES, MAX_NODES
from togi.recipe.source import read_tree

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{p: *{below}, q: *{below}, <<: *{below}}}\n"
    for below, name in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
)


def write(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def values(folder: Path, text: str | bytes, *overrides: str) -> dict:
    return read_tree(write(folder, text), overrides).values


def test_plain_values_are_what_yaml_says(tmp_path):
    text = "a: [1, -2, +3, 0x1f, 0o17, 0b11, 1_000, 012]\nb: [1.5, .5, 1., 1e3, -2E-3]\nc: [true, False, ~, null, ]\n"
    text += "d: [yes, on, '5', !!str 5, ! 5, 2024-01-01, 1:30, '', =, 1.2.3, -, 0x, 1e]\n"
    found = values(tmp_path, text)
    assert found["a"] == [1, -2, 3, 31, 15, 3, 1000, 12]
    assert found["b"] == [1.5, 0.5, 1.0, 1000.0, -0.002] and all(isinstance(x, float) for x in found["b"])
    assert found["c"] == [True, False, None, None]
    assert found["d"] == ["yes", "on", "5", "5", "5", "2024-01-01", "1:30", "", "=", "1.2.3", "-", "0x", "1e"]


def test_keys_are_the_text_that_stands_there(tmp_path):
    assert values(tmp_path, "a: {1: x, null: y, true: z, 0x10: u, '': v}\n")["a"] == {
        "1": "x",
        "null": "y",
        "true": "z",
        "0x10": "u",
        "": "v",
    }


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    assert values(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: [x,\r\n  y]\r\n") == {"a": 1, "b": ["x", "y"]}


def test_anchors_aliases_and_merges_of_everyday_use(tmp_path):
    text = "a: &a {x: 1, y: [1]}\nb: &b {x: 2, z: 3}\nc: {<<: [*a, *b], z: 4}\nd: [*a, *a]\n&k e: *k\n"
    found = values(tmp_path, text, "a.x=9", "d.0.y.0=7")
    assert found["c"] == {"z": 4, "x": 1, "y": [1]}
    assert found["a"] == {"x": 9, "y": [1]} and found["d"] == [{"x": 1, "y": [7]}, {"x": 1, "y": [1]}]
    assert found["e"] == "e"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [x]\n", r"r\.yaml:2: b: found the tag !!python/object/apply:os\.s"),
        ("a: !!binary aGk=\n", r":1: a: found the tag !!binary"),
        ("a: !!set {x}\n", ":1: a: found the tag !!set"),
        ("a: !!timestamp 2024-01-01\n", ":1: a: found the tag !!timestamp"),
        ("a: [1, !mine {x: 1}]\n", ":1: a.1: found the tag !mine"),
        ("? [a]\n: 1\n", ":1: recipe: a key is text"),
        ("a:\n  ? {b: c}\n  : 1\n", ":2: a: a key is text"),
        ("a: &a 1\n*a : 2\n", ":2: recipe: a key is text"),
        ("a: *b\n", r":1: a: \*b: no value above has the anchor &b"),
        ("a: &a\n  b: [*a]\n", r":2: a\.b\.0: \*a: the value would contain itself"),
        ("a: 1\n---\nb: 2\n", ":2: recipe: a second document begins here"),
        ("a: {<<: 1}\n", ":1: a: `<<` takes a map"),
        ("a: {<<: [{x: 1}, 2]}\n", ":1: a: `<<` takes a map"),
        ("a: {b: 1, 'b': 2}\n", r":1: not valid YAML: a\.b is given twice, first at .*:1;"),
        ('a: "\\ud800"\n', r":1: a: '\\ud800' is half of a character"),
        ('a: {"\\udfff": 1}\n', r":1: a: '\\udfff' is half of a character"),
        (f"a: {'9' * 5000}\n", ":1: a: a whole number of more than 64 bits"),
        (f"a: [{2**63}, 0x{'f' * 17}]\n", ":1: a.0: a whole number .*\n.*:1: a.1: a whole number"),
        ('a: "\\U00110000"\n', ":1: not valid YAML"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', ":[12]: not valid YAML"),
        ("a: 1\nb:\n\t- 1\n", ":3: not valid YAML"),
        ("a: 1\nb: \x1b[31m\n", r":2: not valid YAML: the control character '\\x1b'"),
        ("%YAML 9.9.9\n---\na: 1\n", ":1: not valid YAML"),
        ("%TAG ! %zz\n---\na: !x 1\n", r":\d: "),
        ("a: !<%ff> 1\n", r":1: "),
        (LAUGHS, r"r\.yaml:\d: .*: the recipe contains more than 20,000 values, counting those that aliases"),
        (MERGES, r"r\.yaml:\d+: .*: the recipe contains more than 20,000 values, counting those that aliases"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "r.yaml:1: a: nested deeper than 50 levels"),
        ("".join(" " * i + f"k{i}:\n" for i in range(300)), r"r\.yaml:\d+: k0: nested deeper than 50"),
        (f"a: &a {'[' * 30}{']' * 30}\nb: &b {'[' * 15}*a{']' * 15}\nc: {'[' * 9}*b{']' * 9}\n", ":3: c: nested"),
        ("a: [" + "1, " * MAX_NODES + "]\n", "contains more than 20,000 values"),
        ("a: '" + "x" * MAX_BYTES + "'\n", r"r\.yaml: larger than 1 MiB"),
        ("a: {x: !t 1}\nb: !u 2\na: 3\n", "(?s)a.x: found the tag !t.*b: found the tag !u.*a is given twice"),
        ("", "is a map"),
        ("# nothing\n", "is a map"),
        ("--- \n...\n", "is a map"),
        ("extends: {a: 1}\n", r"r\.yaml:1: extends: expected the path of a recipe, found"),
        ("extends: [x.yaml]\n", r"r\.yaml:1: extends: expected the path of a recipe, found"),
        ("\n\nextends: ''\n", r"this is a folder"),
        ("\n\nextends: .\n", r"this is a folder"),
        ("extends: ~nosuchuser/r.yaml\n", r"r\.yaml:1: extends: the path '~nosuchuser/r\.yaml' cannot be used"),
        ('extends: "a\\0b"\n', r"r\.yaml:1: extends: the path .* cannot be used: embedded null"),
        (f"extends: {'x' * 300}.yaml\n", "cannot be read: File name too long"),
        ("extends: circle\n", r"(cannot be used|cannot be read): "),
        ("extends: pipe\n", "pipe: not a regular file"),
    ],
)
def test_what_a_recipe_cannot_hold_is_refused_at_its_line_and_soon(tmp_path, text, expected):
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    with pytest.raises(RecipeError, match=expected):
        values(tmp_path, text)
    assert time.monotonic() - start < 20


def test_a_chain_of_recipes_has_an_end(tmp_path):
    for number in range(MAX_FILES + 2):
        write(tmp_path, f"extends: {number + 1}.yaml\n", f"{number}.yaml")
    write(tmp_path, "a: 1\n", f"{MAX_FILES + 1}.yaml")
    assert read_tree(tmp_path / "2.yaml").values == {"a": 1}
    with pytest.raises(RecipeError, match="more than 32 recipes"):
        read_tree(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udcff", "~nosuchuser", "circle/r.yaml", "r.yaml/r.yaml", "pipe"])
def test_a_recipe_that_the_system_refuses(tmp_path, name):
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path, "a: 1\n")
    with pytest.raises(RecipeError):
        read_tree(tmp_path / name)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a..b=1", "is not KEY=VALUE"),
        (".=1", "is not KEY=VALUE"),
        ("=", "is not KEY=VALUE"),
        ("a.list.9=1", "there is no such key"),
        ("a.list.-1=1", "there is no such key"),
        ("a.list.²=1", "there is no such key"),
        ("a.list.x=1", "there is no such key"),
        (f"a.list.{'9' * 5000}=1", "there is no such key"),
        ("a.x.y=1", "a.x is not a map or list"),
        (".".join("a" * (MAX_DEPTH + 1)) + "=1", "nested deeper"),
        ("a=[1", "not valid YAML"),
        ("a=!!set {x}", "found the tag !!set"),
        ("a={x: [1, !t 2]}", r"a\.x\.1: found the tag !t"),
        ("a=*b", "no value above has the anchor"),
        ("a=\udcff", "not valid UTF-8"),
        ("a.\udcff=1", "not valid UTF-8"),
        ("a=x\x1by", "control character"),
        ("a={b: 1, b: 2}", "is given twice"),
        ("a=[" + "[" * 900 + "]" * 900 + "]", "nested deeper"),
    ],
)
def test_overrides_that_cannot_be_are_refused(tmp_path, override, expected):
    with pytest.raises(RecipeError, match=f"command line.*{expected}"):
        values(tmp_path, "a: {x: 1, list: [1]}\n", override)


def test_overrides_of_odd_keys_are_keys(tmp_path):
    assert values(tmp_path, "a: 1\n", "data={null: 1}", "s.²=1", "s.7=2", "t=null", "u=2024-01-01", "v=a=b") == {
        "a": 1,
        "data": {"null": 1},
        "s": {"²": 1, "7": 2},
        "t": None,
        "u": "2024-01-01",
        "v": "a=b",
    }
    assert values(tmp_path, "a:\nb: [{x: 1}, {x: 2}]\n", "a.y=1", "b.1.x=3") == {
        "a": {"y": 1},
        "b": [{"x": 1}, {"x": 3}],
    }


def test_null_removes_only_what_is_there(tmp_path):
    write(tmp_path, "stages: {one: {x: 1}, two: {x: 2}}\n", "base.yaml")
    text = "extends: base.yaml\nstages: {one: null, tow: null}\n"
    assert values(tmp_path, text, "stages.three=null", "stages.two=null") == {"stages": {"tow": None, "three": None}}


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a\0b", "x" * 300, "circle", "pipe", "plug", "/dev/zero", "\udcff"])
def test_paths_that_the_system_refuses(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(ValueError, match=r"path|cannot be used|pipe"):
        listener.bind("plug")
        RecipePath.check(name)


def test_a_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RecipeError, match="cannot be used: No such file"):
        read_tree(Path("r.yaml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_told(tmp_path):
    write(tmp_path, "a: 1\n").chmod(0)
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        read_tree(tmp_path / "r.yaml")
    with pytest.raises(ValueError, match="permission denied"):
        RecipePath.check(str(tmp_path / "r.yaml"))
