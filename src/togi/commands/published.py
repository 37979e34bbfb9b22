"""The recipe and the lock of a run in a form for others: complete, and without the folders of this machine."""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from togi.core.files import write_text
from togi.core.settings import Located, RecipePath, absolute, walk
from togi.recipe.document import compose
from togi.recipe.locked import LOCK, Locked
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

RECIPE = "recipe.yaml"
UNLIKE_TEXT = re.compile(r"[-+.~0-9]|(?i:y|n|yes|no|on|off)$")
"""The beginning of texts that are written in quotes, because readers of YAML disagree on which of them are numbers, and
words that some read as true or false."""


def publish_lock(locked: Locked, recipes: Path | None, out: Path) -> None:
    """Writes the lock into `out`, with its paths as `shown_path` gives them."""
    write_text(out / LOCK, _yaml(shown_paths(locked.values, locked.paths(), recipes)))


def shown_paths(values: Any, known: Mapping[str, object], recipes: Path | None) -> Any:
    """`values` with each path that is among the `known` as `shown_path` gives it."""
    return _changed(values, lambda text: shown_path(text, recipes) if text in known else text)


def shown_path(path: str, recipes: Path | None) -> str:
    """An absolute path for others: relative to `recipes`, the folder of the recipe, if it is in it, else its name."""
    if recipes is not None and Path(path).is_relative_to(recipes.resolve()):
        return Path(path).relative_to(recipes.resolve()).as_posix()
    return Path(path).name


def publish_recipe(recipe: Path, overrides: Sequence[str], out: Path) -> None:
    """Writes the recipe of a run into `out`: a copy, or, if it extends another or has overrides, the resolved recipe.
    Raises RecipeError if it cannot be read any more."""
    if not overrides and not _extends(recipe):
        shutil.copyfile(recipe, out / RECIPE)
        return
    tree = read_tree(recipe, tuple(overrides))
    found = validate(tree)
    parts = [*found.models.values(), *found.data.values(), *found.stages.values()]
    known = {str(leaf) for part in parts for _, leaf in walk(part) if isinstance(leaf, RecipePath)}
    folder = recipe.resolve().parent
    write_text(out / RECIPE, _yaml(_changed(tree.values, lambda text: _rebased(text, folder, known))))


def _extends(recipe: Path) -> bool:
    text = recipe.read_text(encoding="utf-8-sig")
    root = compose(text, lambda line: f"{recipe}:{line}", recipe.parent).value
    return isinstance(root, dict) and "extends" in root


def _rebased(text: str, folder: Path, known: set[str]) -> str:
    """A relative path of another recipe's folder, relative to `folder`; any other text as it is."""
    if not isinstance(text, Located) or text.folder == folder or text.startswith(("/", "~", "$")) or not text:
        return text
    try:
        path = str(absolute(text, text.folder))
    except ValueError:
        return text
    return os.path.relpath(path, folder) if path in known else text


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of plain values with each text changed."""
    if isinstance(value, Mapping):
        return {str(key): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _yaml(values: Any) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 120
    out = StringIO()
    yaml.dump(_changed(values, _quoted), out)
    return out.getvalue()


def _quoted(text: str) -> str:
    return DoubleQuotedScalarString(text) if UNLIKE_TEXT.match(text) else str(text)
