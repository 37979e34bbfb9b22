"""Reads a recipe file into plain values, each with the file and line where it was set.

`extends: other.yaml` merges maps deeply and replaces lists. `null` removes a stage, a model, data or a top-level key of
the other recipe; as the value of a setting it is kept, because there it can mean "none". `a.b=value` on the command
line is one more layer on top. Strings become `Located`, so that a path can be resolved against the file that names it.
"""

import stat
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from togi.core.errors import RecipeError
from togi.core.settings import absolute
from togi.core.sources import WEIGHT_FILES
from togi.recipe.document import MAX_BYTES, MAX_DEPTH, MAX_FILES, KeyPath, Node, compose, dotted, flatten

COMMAND = "command line ("
"""How the place of a value begins that an override on the command line set."""
NAMED = 2
"""Length of the key path of a stage, a model or data; paths of settings are longer."""


@dataclass(slots=True)
class Tree:
    """A merged recipe: `values` are plain dicts, lists and scalars; `origins` maps a key path to "file:line"."""

    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """file:line of a key, or of the nearest parent key that is in the recipe."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return "recipe"

    def overridden(self, path: KeyPath) -> list[KeyPath]:
        """The keys below `path` that the command line set, relative to it."""
        size = len(path)
        below = [key for key in self.origins if len(key) > size and key[:size] == path]
        return [key[size:] for key in below if self.origins[key].startswith(COMMAND)]


def read_tree(path: Path, overrides: tuple[str, ...] = ()) -> Tree:
    """The recipe at `path` with everything it extends and the overrides applied.

    Raises RecipeError for a file that cannot be read, invalid YAML or content that a recipe cannot have (with its
    line), a loop of `extends`, a malformed override, an override of a stage that the recipe does not have.
    """
    root = _read(_resolved(str(path), Path(), "command line"), ())
    written = _stages(root)
    for override in overrides:
        root = _override(root, override)
    for override in overrides:
        _refuse_unknown_stage(override.partition("=")[0], written, _stages(root))
    origins: dict[KeyPath, str] = {}
    return Tree(flatten(root, (), origins), origins)


def _resolved(text: str, folder: Path, where: str) -> Path:
    try:
        return absolute(text, folder)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _read(path: Path, seen: tuple[Path, ...]) -> Node:
    if path in seen:
        raise RecipeError(f"{seen[-1]}: `extends` goes in a circle: {' -> '.join(p.name for p in (*seen, path))}")
    if len(seen) == MAX_FILES:
        raise RecipeError(f"{path}: more than {MAX_FILES} recipes extend each other; merge some of them")
    root = compose(_text(path), lambda line: f"{path}:{line}", path.parent)
    if not isinstance(root.value, dict):
        raise RecipeError(f"{path}:1: a recipe is a map of name, seed, models, data and stages; this is not a map")
    own = {key: node for key, node in root.value.items() if key != "extends"}
    above = Node(own, f"{path}:1")
    parent = root.value.get("extends")
    if parent is None or parent.value is None:
        return above
    if not isinstance(parent.value, str):
        found = flatten(parent, (), {})
        raise RecipeError(f"{parent.where}: extends: expected the path of a recipe, found {found!r}")
    below = _read(_resolved(parent.value, path.parent, f"{parent.where}: extends"), (*seen, path))
    return _merged(below, above, 0)


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # opening a pipe would block
            raise RecipeError(f"{path}: not a regular file; give the path of a recipe (.yaml)")
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe; give the path of a .yaml file") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder; give the path of a recipe (.yaml)") from None
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}") from None
    if path.suffix.lower() in WEIGHT_FILES:
        raise RecipeError(f"{path}: this is a file of weights; give the path of a recipe (.yaml)")
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES >> 20} MiB; keep data in separate files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not valid UTF-8 (byte {error.start}); save the recipe as UTF-8") from None


def _merged(below: Node, above: Node, depth: int) -> Node:
    """Merges `above` over `below`. A null with nothing to remove stays null, and is rejected later with its line."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        if key not in merged:
            merged[key] = node
        elif node.value is None and depth < NAMED:
            del merged[key]
        else:
            merged[key] = _merged(merged[key], node, depth + 1)
    return Node(merged, above.where)


def _override(root: Node, text: str) -> Node:
    key, equals, raw = text.partition("=")
    path = tuple(key.split("."))
    if not equals or "" in path:
        raise RecipeError(f"command line: {text!r} is not KEY=VALUE; write for example stages.policy.steps=40")
    if not raw.strip():
        null = "the default or none" if len(path) > NAMED else "no such entry"
        raise RecipeError(
            f"command line: {text!r} has no value; write {key}=null for {null}, {key}='\"\"' for empty text"
        )
    if len(path) > MAX_DEPTH:
        raise RecipeError(f"command line: {key[:80]}...: nested deeper than {MAX_DEPTH} levels")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecipeError(f"command line: {text!r}: not valid UTF-8") from None
    where = f"{COMMAND}{key})"
    return _set(root, path, 0, compose(raw, lambda line: where, _here(), path))


def _stages(root: Node) -> dict[str, Node]:
    """The stages of a recipe, by name; empty if it has none."""
    section = root.value.get("stages") if isinstance(root.value, dict) else None
    return section.value if section is not None and isinstance(section.value, dict) else {}


def _refuse_unknown_stage(key: str, written: dict[str, Node], now: dict[str, Node]) -> None:
    """Raises RecipeError if an override sets a key of a stage that neither the recipe nor the overrides define."""
    path = key.split(".")
    if path[0] != "stages" or len(path) <= NAMED or path[1] in written:
        return
    name = path[1]
    made = now[name].value if name in now else None
    if isinstance(made, dict) and "type" in made:
        return
    close = get_close_matches(name, written, 1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise RecipeError(
        f"command line ({key}): there is no stage {name!r}{meant} (stages: {', '.join(written) or 'none'}); a new "
        f"stage needs its type too: stages.{name}.type=TYPE"
    )


def _here() -> Path:
    return _resolved(".", Path(), "command line")


def _set(node: Node, path: tuple[str, ...], depth: int, value: Node) -> Node:
    """`node` with `value` at the rest of `path`; creates missing maps on the way."""
    if depth == len(path):
        return value
    part = path[depth]
    if isinstance(node.value, list):
        index = int(part) if part.isascii() and part.isdigit() and len(part) < 10 else len(node.value)
        if index >= len(node.value):
            raise RecipeError(f"command line: {dotted(path)}: there is no such key in the recipe")
        items = list(node.value)
        items[index] = _set(items[index], path, depth + 1, value)
        return Node(items, node.where)
    if node.value is not None and not isinstance(node.value, dict):
        raise RecipeError(f"command line: {dotted(path)}: {dotted(path[:depth])} is not a map or list")
    items = dict(node.value or {})
    if depth + 1 == len(path) <= NAMED and value.value is None and part in items:
        del items[part]
    else:
        items[part] = _set(items.get(part, Node(None, value.where)), path, depth + 1, value)
    return Node(items, node.where)
