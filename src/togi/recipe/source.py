"""Reads a recipe file into plain values that know the file and line they were set at.

`extends: other.yaml` merges maps deeply and replaces lists. `null` removes a stage, a model, data or a key at the top;
as the value of a setting it is kept, for there it can mean "none". `a.b=value` on the command line is one more layer on
top. Strings become `Located`, so that a path can be resolved against the file that names it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from togi.core.errors import RecipeError
from togi.core.settings import Located

KeyPath = tuple[str | int, ...]
NAMED = 2
"""Length of the path of a stage, a model or data; settings lie deeper."""


@dataclass(slots=True)
class Tree:
    """A merged recipe: `values` are plain dicts, lists and scalars; `origins` maps a key path to "file:line"."""

    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """file:line of a key, or of the nearest key above it that is in the recipe."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return "recipe"


def read_tree(path: Path, overrides: tuple[str, ...] = ()) -> Tree:
    """The recipe at `path` with everything it extends and the overrides applied.

    Raises RecipeError: missing file, invalid YAML (with its line), a loop of `extends`, a malformed override.
    """
    tree = _read(path.resolve(), ())
    for override in overrides:
        _override(tree, override)
    return tree


def _read(path: Path, seen: tuple[Path, ...]) -> Tree:
    if path in seen:
        raise RecipeError(f"{seen[-1]}: `extends` goes in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    document = _parse(path)
    tree = Tree({}, {(): f"{path}:1"})
    tree.values = _plain(document, (), path, tree.origins)
    parent = tree.values.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise RecipeError(f"{tree.where(('extends',))}: extends: expected a path of a recipe, found {parent!r}")
    base = _read((path.parent / parent).resolve(), (*seen, path))
    _merge(base, base.values, tree, tree.values, ())
    base.origins[()] = tree.origins[()]
    return base


def _parse(path: Path) -> CommentedMap:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe; give the path of a .yaml file") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder; give the path of a recipe (.yaml)") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not valid UTF-8 (byte {error.start}); save the recipe as UTF-8") from None
    try:
        document = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or str(error)).splitlines()[0]
        raise RecipeError(f"{path}:{line}: not valid YAML: {problem}") from None
    except YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, CommentedMap):
        raise RecipeError(f"{path}:1: a recipe is a map of name, seed, models, data and stages; this is not a map")
    return document


def _plain(value: Any, path: KeyPath, file: Path, origins: dict[KeyPath, str]) -> Any:
    if isinstance(value, CommentedMap):
        lines = value.lc.data or {}  # not of keys that a merge (`<<: *base`) brought: they get the line of their map
        for key in value:
            line = lines[key][0] if key in lines else value.lc.line
            origins[(*path, str(key))] = f"{file}:{line + 1}"
        return {str(key): _plain(item, (*path, str(key)), file, origins) for key, item in value.items()}
    if isinstance(value, CommentedSeq):
        for index in range(len(value)):
            origins[(*path, index)] = f"{file}:{value.lc.item(index)[0] + 1}"
        return [_plain(item, (*path, index), file, origins) for index, item in enumerate(value)]
    if isinstance(value, str):
        return Located(str(value), file.parent)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else str(value)


def _merge(base: Tree, below: dict[str, Any], over: Tree, above: dict[str, Any], path: KeyPath) -> None:
    for key, value in above.items():
        here = (*path, key)
        if value is None and len(here) <= NAMED:
            below.pop(key, None)
        elif isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(base, below[key], over, value, here)
        else:
            below[key] = value
        for known in [k for k in base.origins if k[: len(here)] == here and not isinstance(below.get(key), dict)]:
            del base.origins[known]
        base.origins.update({k: v for k, v in over.origins.items() if k[: len(here)] == here})


def _override(tree: Tree, text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"command line: {text!r} is not KEY=VALUE; write for example stages.policy.steps=40")
    try:
        value = YAML(typ="safe", pure=True).load(raw)
    except YAMLError:
        raise RecipeError(f"command line: {key}: {raw!r} is not a YAML value") from None
    path: tuple[Any, ...] = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    target: Any = tree.values
    last = path[-1]
    for depth, part in enumerate(path[:-1]):
        try:
            target = target[part] if isinstance(target, list) else target.setdefault(part, {})
        except (IndexError, TypeError):
            target = None
        if not isinstance(target, dict | list):
            raise RecipeError(f"command line: {key}: {'.'.join(map(str, path[: depth + 1]))} is not a map or list")
    try:
        if value is None and isinstance(target, dict) and len(path) <= NAMED:
            target.pop(last, None)
        else:
            target[last] = Located(value, Path.cwd()) if isinstance(value, str) else value
    except (IndexError, TypeError):
        raise RecipeError(f"command line: {key}: there is no such place in the recipe") from None
    for known in [known for known in tree.origins if known[: len(path)] == path]:  # what stood there is gone
        del tree.origins[known]
    tree.origins[path] = f"command line ({key})"
