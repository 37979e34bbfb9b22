"""Recipe files: where each value was set, the effects of `extends` and overrides, and refusals."""

from pathlib import Path

import pytest

from togi.core.errors import RecipeError
from togi.core.settings import Located
from togi.recipe.source import read_tree


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_value_knows_its_line(tmp_path):
    path = write(tmp_path, "r.yaml", "name: a\nstages:\n  one:\n    type: select\n    count: 3\n")
    tree = read_tree(path)
    assert tree.values["stages"]["one"] == {"type": "select", "count": 3}
    assert tree.where(("stages", "one", "count")) == f"{path}:5"
    assert tree.where(("stages", "one", "absent")) == f"{path}:3"


def test_merged_keys_have_the_line_of_their_map(tmp_path):
    path = write(tmp_path, "r.yaml", "a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\nc: {<<: *a}\n")
    tree = read_tree(path)
    assert tree.values == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
    assert tree.where(("b", "x")) == f"{path}:3" and tree.where(("b", "y")) == f"{path}:4"
    assert tree.where(("c", "x")) == f"{path}:5"


def test_scientific_numbers_are_numbers(tmp_path):
    tree = read_tree(write(tmp_path, "r.yaml", "a: 1e-5\nb: no\nc: 012\n"))
    assert tree.values == {"a": 1e-5, "b": "no", "c": 12}


def test_extends_merges_maps_replaces_lists_and_removes_with_null(tmp_path):
    write(tmp_path, "base.yaml", "a: {x: 1, y: 2}\nb: [1, 2]\nc: 3\n")
    path = write(tmp_path, "over.yaml", "extends: base.yaml\na: {y: 5}\nb: [9]\nc: null\n")
    tree = read_tree(path)
    assert tree.values == {"a": {"x": 1, "y": 5}, "b": [9]}
    assert tree.where(("a", "x")) == f"{tmp_path / 'base.yaml'}:1"
    assert tree.where(("a", "y")) == f"{path}:2"
    assert tree.where(("b", 0)) == f"{path}:3"


def test_null_takes_a_stage_out_and_is_kept_as_the_value_of_a_setting(tmp_path):
    write(tmp_path, "base.yaml", "stages:\n  one: {}\n  two: {validation: 0.2, steps: 5}\n")
    path = write(tmp_path, "over.yaml", "extends: base.yaml\nstages: {one: null, two: {validation: null}}\n")
    assert read_tree(path).values["stages"] == {"two": {"validation": None, "steps": 5}}
    overridden = read_tree(tmp_path / "base.yaml", ("stages.one=null", "stages.two.validation=null"))
    assert overridden.values["stages"] == {"two": {"validation": None, "steps": 5}}


def test_strings_remember_the_folder_of_their_file(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "base.yaml", "a: {path: x.jsonl}\n")
    tree = read_tree(write(tmp_path, "r.yaml", "extends: sub/base.yaml\nb: {path: y.jsonl}\n"))
    assert isinstance(tree.values["a"]["path"], Located)
    assert tree.values["a"]["path"].folder == tmp_path / "sub"
    assert tree.values["b"]["path"].folder == tmp_path


def test_overrides_are_one_more_layer(tmp_path):
    path = write(tmp_path, "r.yaml", "a: {x: 1, list: [1, 2]}\n")
    tree = read_tree(path, ("a.x=1e-5", "a.new=hello", "a.list.1=7"))
    assert tree.values == {"a": {"x": 1e-5, "list": [1, 7], "new": "hello"}}
    assert tree.where(("a", "x")) == "command line (a.x)"
    tree = read_tree(path, ("a={x: 2}",))
    assert tree.where(("a", "x")) == "command line (a)"


def test_an_override_of_an_unknown_stage_says_which_there_are(tmp_path):
    path = write(tmp_path, "r.yaml", "stages: {tuned: {type: select}, tests: {type: select}}\n")
    with pytest.raises(RecipeError) as raised:
        read_tree(path, ("stages.tune.count=5",))
    assert str(raised.value) == (
        "command line (stages.tune.count): there is no stage 'tune'; did you mean 'tuned'? (stages: tuned, tests); a "
        "new stage needs its type too: stages.tune.type=TYPE"
    )
    found = read_tree(path, ("stages.more.count=5", "stages.more.type=select", "stages.tests=null"))
    assert found.values["stages"] == {"tuned": {"type": "select"}, "more": {"count": 5, "type": "select"}}
    with pytest.raises(RecipeError, match=r"there is no stage 'xx' \(stages: none\)"):
        read_tree(write(tmp_path, "empty.yaml", "name: x\n"), ("stages.xx.deep.er=5",))
    assert read_tree(path, ("stages.whole={type: select}",)).values["stages"]["whole"] == {"type": "select"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: [1\nb: 2\n", r"r\.yaml:2: not valid YAML"),
        (b"a: 1\na: 2\n", r"r\.yaml:2: not valid YAML"),
        (b'{"question": "a"}\n{"question": "b"}\n', r"r\.yaml:2: not valid YAML: the document has ended[^(]*$"),
        (b"- 1\n", "is a map"),
        (b"a: 1\nb: \xff\xfe\n", r"r\.yaml:2: not valid UTF-8"),
        (b"extends: [1]\n", r"r\.yaml:1: extends: expected the path"),
        (b"extends: r.yaml\n", "in a circle"),
        (b"extends: gone.yaml\n", r"gone\.yaml: there is no such recipe"),
    ],
)
def test_unreadable_recipes_say_where(tmp_path, text, expected):
    with pytest.raises(RecipeError, match=expected):
        read_tree(write(tmp_path, "r.yaml", text))


def test_an_override_without_a_value_says_what_to_write(tmp_path):
    path = write(tmp_path, "r.yaml", "stages: {a: {type: select}}\n")
    for override in ("stages.a.count=", "stages.a.count= "):
        with pytest.raises(RecipeError, match=r"has no value; write stages\.a\.count=null for the default or none"):
            read_tree(path, (override,))
    with pytest.raises(RecipeError, match=r"write stages\.a=null for no such entry"):
        read_tree(path, ("stages.a=",))
    assert read_tree(path, ('stages.a.system=""',)).values["stages"]["a"]["system"] == ""


@pytest.mark.parametrize("override", ["nothing", "=3", "a.b.c=1", "list.9=1"])
def test_bad_overrides_are_refused(tmp_path, override):
    path = write(tmp_path, "r.yaml", "a: {b: 1}\nlist: [1]\n")
    with pytest.raises(RecipeError, match="command line"):
        read_tree(path, (override,))
