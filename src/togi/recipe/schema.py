"""Validates recipes strictly, with errors that name the file, the line and the key.

Stages are validated one by one against the settings class of their `type`, so that a message never mentions the other
members of a union.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from togi.core.errors import RecipeError
from togi.core.settings import HubId, MadeModelRef, RecipePath, Settings, runtime_setting
from togi.recipe.card_texts import CardTexts
from togi.recipe.document import KeyPath, dotted
from togi.recipe.endpoint_spec import URL_KEYS, EndpointKeys, read_here, read_with, refuse_unread, replayed
from togi.recipe.error_places import chosen, fields_at, present, types_at
from togi.recipe.hardware import Device, Hardware
from togi.recipe.hints import PATTERNS, joined, outside_name, shape, stage_setting, unknown_key
from togi.recipe.licensed import Licensed
from togi.recipe.names import NAME, misnamed, run_name
from togi.recipe.source import Tree
from togi.stages.base import StageSettings
from togi.stages.data.importing import DataSettings
from togi.stages.table import STAGES
from togi.text.template import TEMPLATE_NAMES

DEVICE = r"^(cpu|cuda|cuda:[0-9]+)?$"
S = TypeVar("S", bound=Settings)
MODEL_KINDS = {"causal": "model", "reward": "scorer", "embedder": "embedder"}
"""The kind of reference target for each `kind` of a `models:` entry."""
SHOWN = 100  # characters of an invalid value
EXAMPLES = {"models": "my_model", "data": "my_data", "stages": "my_stage"}
"""A name in each section."""


class TemplateFile(Settings):
    """A user's own chat template, in Jinja."""

    file: RecipePath = Field(description="the template file")
    terminator: str | None = Field(
        default=None, min_length=1, description="the text that ends an answer; when absent, found from a short chat"
    )


class AddedTokens(Settings):
    """Special tokens for a model that lacks them. Their rows of the embeddings and of the head start as the mean of the
    others and are trained, also with lora."""

    add: tuple[str, ...] = Field(min_length=1, description="texts of the tokens; existing tokens stay unchanged")

    @field_validator("add")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [token for i, token in enumerate(value) if not token.strip() or token in value[:i]]
        if wrong:
            raise ValueError(f"each token must be unique and not blank, found {wrong[0]!r}")
        return value


class ModelSpec(EndpointKeys, Licensed):
    """A model from outside, or one that a stage trained: exactly one of package, hub, path and url; none of them if its
    stored answers are replayed (serve.engine: replay)."""

    package: str | None = Field(
        default=None, min_length=1, description="a Python package that contains the weights (GGUF)"
    )
    hub: HubId | None = Field(default=None, min_length=1, description="a hub id (owner/name)")
    path: Annotated[MadeModelRef | RecipePath, Field(union_mode="left_to_right")] | None = Field(
        default=None, description="a model folder, or $stage: the model that a stage trained"
    )
    revision: str = Field(default="main", description="hub: commit, tag or branch; url: a label of your choice")
    file: str = Field(default="*.gguf", min_length=1, description="package: pattern for the weights file")
    kind: Literal["causal", "reward", "embedder"] = Field(
        default="causal",
        description="causal: generates text; reward: gives each conversation a score; embedder: embeds texts",
    )
    prefix: str = Field(default="", description='embedder: put before every text; multilingual E5 wants "query: "')
    device: str = runtime_setting(
        "", "device for a model that is not trained (cpu, cuda:1); empty: the machine's choice", pattern=DEVICE
    )
    shape: RecipePath | None = runtime_setting(
        None,
        "hub, url: a config.json of the model, so that `togi plan` knows its sizes without the model; `togi check` "
        "compares it with the hub's",
    )
    template: str | TemplateFile | None = Field(
        default=None,
        description="name of a chat template, or {file: FILE, terminator: TEXT}; when absent, the model's own",
    )
    tokens: AddedTokens | None = Field(default=None, description="special tokens to add to the tokenizer and the model")

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str | TemplateFile | None) -> str | TemplateFile | None:
        if isinstance(value, str) and value not in TEMPLATE_NAMES:
            hint = "; for your own template, use {file: FILE}"
            raise ValueError(f"no template is called {value!r}{unknown_key(value, list(TEMPLATE_NAMES))}{hint}")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> "ModelSpec":
        if not replayed(self):
            _exactly_one(self, ("package", "hub", "path", "url"))
        if self.url is None:
            read_with(self, "revision", "hub")
        elif self.model is None:
            raise ValueError("an endpoint (url) needs `model`, the model's name on the server")
        read_with(self, "file", "package")
        if self.shape is not None and self.hub is None and self.url is None:
            raise ValueError("shape is read only with hub or url; a local model has its own config.json; remove it")
        for name in URL_KEYS:
            if not read_here(self, name):
                read_with(self, name, "url")
        if replayed(self) and (self.package, self.hub, self.path, self.url, self.kind) != (None,) * 4 + ("causal",):
            raise ValueError(
                "serve: {engine: replay} replays stored answers, so package, hub, path, url and kind cannot be set; "
                "remove them, or set serve: null"
            )
        if self.serve is not None and self.url is not None:
            raise ValueError("serve starts a server for a local model (package, hub, path); url names a running one")
        if self.prefix and self.kind != "embedder":
            raise ValueError(f"prefix is read only with kind: embedder, found kind: {self.kind}; remove it")
        if self.kind == "embedder" and (unread := [n for n in ("template", "tokens") if getattr(self, n) is not None]):
            raise ValueError(f"{unread[0]} is not read with kind: embedder; remove it")
        refuse_unread(self, self.kind, self.device, self.tokens, self.template)
        return self

    @model_validator(mode="after")
    def _made_as_it_is(self) -> "ModelSpec":
        if isinstance(self.path, MadeModelRef):
            given = [name for name in ("template", "tokens", "terms") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} cannot be set for the model of {self.path}, which has its own; remove it")
        return self


class DataSpec(DataSettings):
    """Records from outside: exactly one of path and hub."""

    @model_validator(mode="after")
    def _one_place(self) -> "DataSpec":
        if self.preset is None or (self.path, self.hub) != (None, None):
            _exactly_one(self, ("path", "hub"))
        elif self.on_hub is None:
            raise ValueError(f"the data set of preset {self.preset} is not on a hub; set `path` to its file or folder")
        if self.preset is not None and self.columns:
            raise ValueError(f"columns are not read with a preset, which defines those of {self.preset}; remove one")
        if self.on_hub is None:
            read_with(self, "revision", "hub")
        return self


def _exactly_one(spec: BaseModel, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ValueError(f"exactly one of {', '.join(names)} is needed, found {found}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A validated recipe; `tree` knows where each value was set."""

    name: str
    seed: int
    models: dict[str, ModelSpec]
    data: dict[str, DataSpec]
    stages: dict[str, StageSettings]
    tree: Tree
    track: tuple[str, ...] = ()
    compute: str = "auto"
    hardware: tuple[Device, ...] = ()
    card: CardTexts = field(default_factory=CardTexts)

    def compute_dtype(self, asked: str) -> str:
        """The type of matrix multiplications: that of the command line, else that of the recipe."""
        return self.compute if asked == "auto" else asked


class RecipeHead(Settings):
    """The keys at the top of a recipe."""

    name: Annotated[str, AfterValidator(run_name)] = Field(
        json_schema_extra={"pattern": NAME}, description="the run's name: its folder under $TOGI_HOME/runs"
    )
    seed: int = Field(default=17, ge=0, description="seed of every stage that sets no seed itself")
    models: dict[str, Any] = Field(default_factory=dict, description="models from outside, by name")
    data: dict[str, Any] = Field(default_factory=dict, description="data from outside, by name")
    stages: dict[str, Any] = Field(min_length=1, description="the stages, by name; each has a `type`")
    compute: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="type of matrix multiplications; auto measures once which is fast on the machine"
    )
    card: CardTexts = Field(default_factory=CardTexts, description="texts for the card of an exported model")
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        default=(), description="tools that show metrics, besides metrics.jsonl; secrets come from the environment"
    )

    hardware: Hardware = Field(default=(), description="the devices that plan and check assume; empty: this machine's")

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def validate(tree: Tree) -> Recipe:
    """Turns a merged tree into a recipe. Raises RecipeError with every problem that can be found at once."""
    problems: list[str] = []
    head = _validate(RecipeHead, tree.values, (), tree, problems)
    members = {section: _members(section, tree, problems) for section in ("models", "data", "stages")}
    models = _section(ModelSpec, "models", members, tree, problems)
    data = _section(DataSpec, "data", members, tree, problems)
    stages = {name: _stage(name, values, tree, problems) for name, values in members["stages"].items()}
    seen: dict[str, str] = {}
    for section, names in members.items():
        for name in names:
            if wrong := misnamed(name, EXAMPLES[section]):
                problems.append(f"{tree.where((section, name))}: {section}.{name}: {wrong}")
            if name in seen:
                problems.append(f"{tree.where((section, name))}: {section}.{name}: {seen[name]} has this name already")
            seen[name] = section
    if problems or head is None:
        raise RecipeError("\n".join(problems))
    good = {name: stage for name, stage in stages.items() if stage is not None}
    return Recipe(head.name, head.seed, models, data, good, tree, head.track, head.compute, head.hardware, head.card)


def _members(section: str, tree: Tree, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The entries of a section that are maps of settings; reports the others as problems."""
    values = tree.values.get(section)
    found = values if isinstance(values, dict) else {}  # other values are reported with the keys at the top
    for name, value in found.items():
        if not isinstance(value, dict):
            wrong = f"should be a map of settings, found {_shown(value)}"
            wrong += "; null only removes entries of an extended recipe" if value is None else ""
            problems.append(f"{tree.where((section, name))}: {section}.{name}: {wrong}")
    return {name: value for name, value in found.items() if isinstance(value, dict)}


def _section(
    cls: type[S], section: str, members: dict[str, dict[str, Any]], tree: Tree, problems: list[str]
) -> dict[str, S]:
    found = {name: _validate(cls, v, (section, name), tree, problems) for name, v in members[section].items()}
    return {name: spec for name, spec in found.items() if spec is not None}


def _stage(name: str, values: dict[str, Any], tree: Tree, problems: list[str]) -> StageSettings | None:
    path = ("stages", name)
    kind = values.get("type")
    if isinstance(kind, str) and kind in STAGES:
        return _validate(STAGES[kind].settings, values, path, tree, problems)
    found = "this key is required" if kind is None else f"found {_shown(kind)}"
    problems.append(f"{tree.where((*path, 'type'))}: stages.{name}.type: {found}{unknown_key(str(kind), list(STAGES))}")
    return None


def _validate(cls: type[S], values: Any, path: KeyPath, tree: Tree, problems: list[str]) -> S | None:
    try:
        model = cls.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
    else:
        truths = [(*path, *place) for place in _truths(values, model)]
        problems += [f"{tree.where(at)}: {dotted(at)}: should be a number, found true or false" for at in truths]
        return None if truths else model
    if nulls := [place for item in found if (place := _mendable(cls, values, item))]:
        return _validate(cls, _without(values, nulls), path, tree, problems)
    places: dict[KeyPath, list[Any]] = {}
    for item in found:
        places.setdefault(_place(values, item), []).append(item)
    for place, items in places.items():
        full = (*path, *place)
        wrong = _wrong(cls, values, place, items)
        problems.append(f"{tree.where(full)}: {dotted(full)}: {wrong}")
    return None


def _truths(given: Any, taken: Any, here: KeyPath = ()) -> Iterator[KeyPath]:
    """The paths where true or false was accepted as a number: `steps: true` would be one step."""
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        yield here
    elif isinstance(given, dict):
        for key, value in given.items():
            inside = taken.get(key) if isinstance(taken, dict) else getattr(taken, key, None)
            yield from _truths(value, inside, (*here, key))
    elif isinstance(given, list) and isinstance(taken, list | tuple):
        for index, (value, inside) in enumerate(zip(given, taken, strict=False)):
            yield from _truths(value, inside, (*here, index))


def _mendable(cls: type[BaseModel], values: Any, error: Any) -> KeyPath:
    """The path of a known setting that does not accept null and has it, which then means its default; else ()."""
    place = present(values, error["loc"])
    null = error["input"] is None and error["type"] not in ("missing", "extra_forbidden")
    if not (null and place and all(isinstance(part, str) for part in place)):
        return ()
    return place if place[-1] in fields_at(cls, place[:-1]) else ()


def _without(values: Any, paths: list[KeyPath], here: KeyPath = ()) -> Any:
    """`values` without the keys at `paths`."""
    if not isinstance(values, dict):
        return values
    kept = {key: value for key, value in values.items() if (*here, key) not in paths}
    return {key: _without(value, paths, (*here, key)) for key, value in kept.items()}


def _place(values: Any, error: Any) -> KeyPath:
    inside = present(values, error["loc"])
    return (*inside, error["loc"][-1]) if error["type"] == "missing" else inside


def _wrong(cls: type[BaseModel], values: Any, place: KeyPath, errors: list[Any]) -> str:
    """The error at one path; for a setting of several types, what each of them requires."""
    kinds = [error["type"] for error in errors]
    if "missing" in kinds:
        return "this key is required"
    found = errors[0]["input"]
    if "extra_forbidden" in kinds:
        comma = found is None and place and str(place[-1])[:1].isdigit()
        hint = "; in {...} a comma ends a value: a decimal number has a point" if comma else ""
        return f"unknown key{hint}{_unknown(cls, chosen(values, errors[0]['loc']))}"
    text = joined([_wanted(error) for error in errors], found)
    if "value_error" in kinds and isinstance(found, str) and (said := re.search(r"a reference like .* to (\w+)", text)):
        return text if cls is ModelSpec else f"{text}{outside_name(found, said[1])}"  # it is declared there already
    if "value_error" in kinds or (isinstance(found, dict | list) and not kinds[0].endswith(("_type", "literal_error"))):
        return text
    return f"{text}, found {_shown(found)}{shape(str(place[-1]) if place else '', found, text, types_at(cls, place))}"


def _unknown(cls: type[BaseModel], place: KeyPath) -> str:
    """What was probably meant by the unknown key at `place`, and the keys that are allowed there."""
    key, above = str(place[-1]), place[:-1]
    allowed = fields_at(cls, above)
    nested = [f"{name}.{inner}" for name in allowed for inner in fields_at(cls, (*above, name))]
    return unknown_key(key, allowed, nested, "" if above else _other_place(cls, key))


def _other_place(cls: type[BaseModel], key: str) -> str:
    """Where else a recipe has the key: in a stage, at its top, or in an entry under models: or data:."""
    if cls is RecipeHead:
        words = {word for stage in STAGES.values() for word in stage.settings.model_fields}
        if said := stage_setting(key, words):
            return said
    elif cls not in [stage.settings for stage in STAGES.values()]:
        return ""
    elif key in RecipeHead.model_fields:
        return f"{key} belongs at the top of the recipe"
    found = [name for name, spec in (("models", ModelSpec), ("data", DataSpec)) if key in spec.model_fields]
    return f"{key} belongs in an entry under {' or '.join(f'{name}:' for name in found)}" if found else ""


WANTED = {
    "dict_type": "should be a map",
    "model_type": "should be a map of settings",
    "model_attributes_type": "should be a map of settings",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "string_type": "should be text",
    "int_type": "should be a valid integer",
    "int_parsing": "should be a valid integer",
    "int_parsing_size": "should be a smaller integer",
    "int_from_float": "should be a valid integer",
    "float_type": "should be a valid number",
    "float_parsing": "should be a valid number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "union_tag_not_found": "this map needs a `type`",
}
"""Messages for pydantic's errors, in the terms of a recipe."""


def _wanted(error: Any) -> str:
    if error["type"] == "union_tag_invalid":
        allowed = [tag.strip("'") for tag in error["ctx"]["expected_tags"].split(", ")]
        return f"type: found {_shown(error['ctx']['tag'])}{unknown_key(error['ctx']['tag'], allowed)}"
    text: str = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return PATTERNS.get(error.get("ctx", {}).get("pattern", ""), WANTED.get(error["type"], text))


def _shown(value: Any) -> str:
    """A value as written in the recipe, as one short line."""
    text = "nothing (null)" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
