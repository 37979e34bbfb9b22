"""Finds the models and files that a recipe needs and this machine lacks, and reports all of them at once."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from togi.core.errors import InputError
from togi.core.hashing import tree
from togi.core.settings import PackageName, RecipePath, is_place, walk
from togi.core.sources import ModelSource, lineage
from togi.recipe.references import used
from togi.recipe.schema import Recipe

Identify = Callable[[ModelSource], str]
Look = Callable[[], Any]
Key = str | int


def refuse_missing(recipe: Recipe, sources: Mapping[str, ModelSource], identify: Identify) -> None:
    """Raises InputError with every model and file that a stage needs and that does not exist, one on each line, each
    once and at the first key that names it; reads no weights. `sources` are the recipe's models from outside;
    `identify` raises InputError for a missing one."""
    problems: dict[str, str] = {}
    for path, look in _needed(recipe, sources, identify):
        if text := _problem(look):
            problems.setdefault(text, f"{recipe.tree.where(path)}: {'.'.join(map(str, path))}: {text}")
    if problems:
        raise InputError("\n".join(problems.values()))


def _problem(look: Look) -> str:
    try:
        look()
    except InputError as error:
        return str(error)
    return ""


def _needed(
    recipe: Recipe, sources: Mapping[str, ModelSource], identify: Identify
) -> Iterator[tuple[tuple[Key, ...], Look]]:
    """For each model and file: its place in the recipe, and a function that raises InputError if it is missing."""
    for name in used(recipe):
        if name in sources:
            yield ("models", name), partial(_look_for, sources[name], identify)
        elif name in recipe.data:
            yield from _files(recipe.data[name], identify, ("data", name))
    for name, settings in recipe.stages.items():
        yield from _files(settings, identify, ("stages", name))


def _look_for(source: ModelSource, identify: Identify) -> None:
    """Raises InputError for a package that is not installed and a folder that is missing, also that of an adapter's
    base."""
    if source.kind == "package" or (source.kind == "path" and not Path(source.name).is_dir()):
        identify(source)
    elif source.kind == "path":
        lineage(source)
    for path in [source.template_file, *source.stored]:
        if path:
            tree(Path(path))


def _files(settings: BaseModel, identify: Identify, place: tuple[str, str]) -> Iterator[tuple[tuple[Key, ...], Look]]:
    for path, leaf in walk(settings):
        name = path[0]
        if is_place(settings, str(name)):
            continue
        if isinstance(leaf, RecipePath):
            yield (*place, *path), partial(tree, Path(leaf))
        elif isinstance(leaf, PackageName):
            yield (*place, *path), partial(identify, ModelSource(kind="package", name=leaf))
