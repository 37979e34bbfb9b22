"""The recipe as strict values, and errors that name the file, the line and the key.

Stages are validated one by one against the settings class of their `type`, so that a message never speaks of the other
members of a union.
"""

import difflib
import re
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from togi.core.errors import RecipeError
from togi.core.settings import RecipePath, Settings
from togi.recipe.source import KeyPath, Tree
from togi.recipe.state import LOCK
from togi.stages.base import StageSettings
from togi.stages.imported import DataSettings
from togi.stages.table import STAGES
from togi.text.template import TEMPLATE_NAMES

S = TypeVar("S", bound=Settings)
NAME = r"^[A-Za-z_][A-Za-z0-9_-]*$"
RESERVED = (LOCK,)  # a run's folder holds its stages by name beside files of its own; the others' names have a dot


class ModelSpec(Settings):
    """A model from outside: exactly one of package, hub and path."""

    package: str | None = Field(default=None, description="a Python package that holds the weights (GGUF)")
    hub: str | None = Field(default=None, description="a model hub's id")
    path: RecipePath | None = Field(default=None, description="a model folder")
    revision: str = Field(default="main", description="hub: commit, tag or branch")
    file: str = Field(default="*.gguf", description="package: pattern of the weights file")
    kind: Literal["causal", "reward"] = Field(
        default="causal", description="causal: it writes; reward: it scores conversations, one number each"
    )
    template: str | None = Field(default=None, description="chat template by name; the model's own when absent")
    licence: str = Field(default="", description="licence of the weights, shown before they are used")

    @field_validator("template")
    @classmethod
    def _known_template(cls, name: str | None) -> str | None:
        if name is not None and name not in TEMPLATE_NAMES:
            raise ValueError(f"no template is called {name!r}{_suggest(name, list(TEMPLATE_NAMES))}")
        return name

    @model_validator(mode="after")
    def _one_place(self) -> "ModelSpec":
        _exactly_one(self, ("package", "hub", "path"))
        _read_with(self, "revision", "hub")
        _read_with(self, "file", "package")
        return self


class DataSpec(DataSettings):
    """Records from outside: exactly one of path and hub."""

    @model_validator(mode="after")
    def _one_place(self) -> "DataSpec":
        _exactly_one(self, ("path", "hub"))
        _read_with(self, "revision", "hub")
        return self


def _exactly_one(spec: BaseModel, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ValueError(f"exactly one of {', '.join(names)} says where it comes from, found {found}")


def _read_with(spec: BaseModel, name: str, place: str) -> None:
    """Raises ValueError for a setting that does nothing, because what it belongs to comes from elsewhere."""
    value = getattr(spec, name)
    if getattr(spec, place) is None and value != type(spec).model_fields[name].default:
        raise ValueError(f"{name} is read with {place} alone, found {value!r}; remove it")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe, validated; `tree` still knows where each value was set."""

    name: str
    seed: int
    models: dict[str, ModelSpec]
    data: dict[str, DataSpec]
    stages: dict[str, StageSettings]
    tree: Tree
    track: tuple[str, ...] = ()
    compute: str = "auto"

    def products(self, asked: str) -> str:
        """The type of matrix products: what the command line asks for, else what the recipe says."""
        return self.compute if asked == "auto" else asked


class _Head(Settings):
    name: str = Field(pattern=NAME)
    seed: int = Field(default=17, ge=0)
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data: dict[str, dict[str, Any]] = Field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    compute: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="type of matrix products; auto tries once what the machine is fast at"
    )
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        default=(), description="where metrics are shown besides metrics.jsonl; secrets come from the environment"
    )

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def validate(tree: Tree) -> Recipe:
    """Turns a merged tree into a recipe. Raises RecipeError listing every problem that one reading can find."""
    problems: list[str] = []
    head = _validate(_Head, tree.values, (), tree, problems)
    if head is None:
        raise RecipeError("\n".join(problems))
    models = _section(ModelSpec, "models", tree, problems)
    data = _section(DataSpec, "data", tree, problems)
    stages = {name: _stage(name, tree, problems) for name in tree.values["stages"]}
    seen: dict[str, str] = {}
    for section in ("models", "data", "stages"):
        for name in tree.values.get(section) or {}:
            problems += [f"{tree.where((section, name))}: {section}.{name}: {wrong}" for wrong in _misnamed(name)]
            if name in seen:
                problems.append(f"{tree.where((section, name))}: {section}.{name}: {seen[name]} has this name already")
            seen[name] = section
    if problems:
        raise RecipeError("\n".join(problems))
    good = {name: stage for name, stage in stages.items() if stage is not None}
    return Recipe(head.name, head.seed, models, data, good, tree, head.track, head.compute)


def _misnamed(name: str) -> list[str]:
    if name in RESERVED:
        return [f"{name!r} is the name of a file in the run's folder; choose another"]
    if not re.fullmatch(NAME, name):
        return [f"{name!r} is not a name: a letter or _ first, then letters, digits, _ and -; for example my_stage"]
    return []


def _section(cls: type[S], section: str, tree: Tree, problems: list[str]) -> dict[str, S]:
    values = tree.values.get(section) or {}
    found = {name: _validate(cls, value, (section, name), tree, problems) for name, value in values.items()}
    return {name: spec for name, spec in found.items() if spec is not None}


def _stage(name: str, tree: Tree, problems: list[str]) -> StageSettings | None:
    path = ("stages", name)
    values = tree.values["stages"][name]
    kind = values.get("type")
    if not isinstance(kind, str) or kind not in STAGES:
        where = tree.where((*path, "type"))
        problems.append(f"{where}: stages.{name}.type: found {kind!r}{_suggest(str(kind), list(STAGES))}")
        return None
    return _validate(STAGES[kind].settings, values, path, tree, problems)


def _validate(cls: type[S], values: Any, path: KeyPath, tree: Tree, problems: list[str]) -> S | None:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
    places = {_present(values, item["loc"]) for item in found if item["type"] != "missing" and item["input"] is None}
    nulls = {place for place in places if place and all(isinstance(part, str) for part in place)}
    if nulls:  # a setting that knows no "none" has its default
        return _validate(cls, _without(values, nulls), path, tree, problems)
    problems += [_message(cls, values, path, item, tree) for item in found]
    return None


def _without(values: Any, paths: set[KeyPath], here: KeyPath = ()) -> Any:
    """`values` without the keys at `paths`."""
    if not isinstance(values, dict):
        return values
    kept = {key: value for key, value in values.items() if (*here, key) not in paths}
    return {key: _without(value, paths, (*here, key)) for key, value in kept.items()}


def _message(cls: type[BaseModel], values: Any, path: KeyPath, error: Any, tree: Tree) -> str:
    inside = _present(values, error["loc"])
    full = (*path, *inside)
    key = ".".join(map(str, full)) or "recipe"
    where = tree.where(full)
    if error["type"] == "extra_forbidden":
        allowed = _fields(cls, error["loc"][:-1])
        return f"{where}: {key}: unknown key{_suggest(str(inside[-1]), allowed)}"
    if error["type"] == "missing":
        key = ".".join(map(str, (*full, error["loc"][-1])))
        return f"{where}: {key}: this key is required"
    text = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    found = error.get("input")
    if error["type"] != "value_error" and not isinstance(found, dict | list):
        text += f", found {found!r}"
    return f"{where}: {key}: {text}"


def _present(values: Any, loc: tuple[Any, ...]) -> KeyPath:
    """The part of an error's location that is really in the recipe (without the tags of unions)."""
    path: list[str | int] = []
    here = values
    for part in loc:
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            path.append(part)
    return tuple(path)


def _suggest(found: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(found, allowed, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (allowed: {', '.join(allowed)})"


def _fields(annotation: Any, loc: tuple[Any, ...]) -> list[str]:
    """Names of the settings that are allowed at `loc` below `annotation`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _fields(get_args(annotation)[0], loc)
    if origin in (Union, types.UnionType):
        names = [name for member in get_args(annotation) for name in _fields(member, loc)]
        return list(dict.fromkeys(names))
    if origin in (list, tuple):
        return _fields(get_args(annotation)[0], loc[1:])
    if origin is dict:
        return _fields(get_args(annotation)[1], loc[1:])
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return []
    if not loc:
        return list(annotation.model_fields)
    if loc[0] in annotation.model_fields:
        return _fields(annotation.model_fields[loc[0]].annotation, loc[1:])
    tag = annotation.model_fields.get("type")  # a union's location carries the tag of the chosen member
    if tag is not None and loc[0] in get_args(tag.annotation):
        return _fields(annotation, loc[1:])
    return []
