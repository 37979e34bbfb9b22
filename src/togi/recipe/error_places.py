"""Finds the place of an error in a recipe, and the settings that are allowed there."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from togi.recipe.document import KeyPath


def present(values: Any, loc: tuple[Any, ...]) -> KeyPath:
    """The part of an error's location that exists in the recipe (without the tags of unions)."""
    return tuple(part for part, is_key in _walked(values, loc) if is_key)


def chosen(values: Any, loc: tuple[Any, ...]) -> KeyPath:
    """`present`, and after each map that says its `type`, this type, if the location has it as the tag of a union."""
    return tuple(part for part, _ in _walked(values, loc))


def _walked(values: Any, loc: tuple[Any, ...]) -> Iterator[tuple[str | int, bool]]:
    """The keys of a location that exist in the recipe (True), and the tags that are the `type` of their map (False)."""
    here = values
    for part in loc:
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            yield part, True
        elif isinstance(here, dict) and part == here.get("type"):
            yield part, False


def fields_at(annotation: Any, loc: tuple[Any, ...]) -> list[str]:
    """Names of the settings that are allowed at `loc` below `annotation`."""
    return list(dict.fromkeys(name for model in models_at(annotation, loc) for name in model.model_fields))


def types_at(annotation: Any, loc: tuple[Any, ...]) -> list[str]:
    """The allowed values of `type` in the map at `loc` below `annotation`; empty if the map has no such setting."""
    tags = [model.model_fields["type"] for model in models_at(annotation, loc) if "type" in model.model_fields]
    return [value for tag in tags for value in get_args(tag.annotation)]


def models_at(annotation: Any, loc: tuple[Any, ...]) -> list[type[BaseModel]]:
    """The classes of settings that are allowed at `loc` below `annotation`, each once."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return models_at(get_args(annotation)[0], loc)
    if origin in (Union, types.UnionType):
        found = [model for member in get_args(annotation) for model in models_at(member, loc)]
        return list(dict.fromkeys(found))
    if origin in (list, tuple):
        return models_at(get_args(annotation)[0], loc[1:])
    if origin is dict:
        return models_at(get_args(annotation)[1], loc[1:])
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return []
    if not loc:
        return [annotation]
    if loc[0] in annotation.model_fields:
        return models_at(annotation.model_fields[loc[0]].annotation, loc[1:])
    tag = annotation.model_fields.get("type")  # a union's location carries the tag of the chosen member
    if tag is not None and loc[0] in get_args(tag.annotation):
        return models_at(annotation, loc[1:])
    return []
