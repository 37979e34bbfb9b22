"""The models and files that a recipe needs and that are not on this machine, all at once."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from togi.core.errors import InputError
from togi.core.hashing import tree
from togi.core.settings import PackageName, RecipePath, is_place, references, walk
from togi.core.sources import ModelSource, lineage
from togi.recipe.schema import Recipe

Identify = Callable[[ModelSource], str]


def refuse_missing(recipe: Recipe, sources: Mapping[str, ModelSource], identify: Identify) -> None:
    """Raises InputError with every model and file that a stage needs and that does not exist, one on each line; reads
    no weights. `sources` are the recipe's models from outside; `identify` raises InputError for a missing one."""
    problems = [text for look in _needed(recipe, sources, identify) if (text := _problem(look))]
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _problem(look: Callable[[], Any]) -> str:
    try:
        look()
    except InputError as error:
        return str(error)
    return ""


def _needed(recipe: Recipe, sources: Mapping[str, ModelSource], identify: Identify) -> Iterator[Callable[[], Any]]:
    """For each model and file: a function that raises InputError if it is missing."""
    used = dict.fromkeys(ref.name for settings in recipe.stages.values() for _, ref in references(settings))
    for name in used:
        if name in sources:
            yield partial(_look_for, sources[name], identify)
        elif name in recipe.data:
            yield from _files(recipe.data[name], identify)
    for settings in recipe.stages.values():
        yield from _files(settings, identify)


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


def _files(settings: BaseModel, identify: Identify) -> Iterator[Callable[[], Any]]:
    for (name, *_), leaf in walk(settings):
        if is_place(settings, str(name)):
            continue
        if isinstance(leaf, RecipePath):
            yield partial(tree, Path(leaf))
        elif isinstance(leaf, PackageName):
            yield partial(identify, ModelSource(kind="package", name=leaf))
