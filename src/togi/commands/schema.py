"""The JSON schema of recipes, for completion and checks in editors.

It is made from the settings classes that read recipes. It checks less than `togi check`: it does not check whether a
reference fits, or that exactly one of several keys is given.
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from togi.core.settings import Ref
from togi.recipe.names import NAME
from togi.recipe.schema import DataSpec, ModelSpec, RecipeHead
from togi.stages.table import STAGES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NULL = {"type": "null"}
REFERENCE = r"^\$[A-Za-z_]"


class _Schema(GenerateJsonSchema):
    """Paths are strings, wherever they resolve to. A reference begins with $."""

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        kind = getattr(schema["function"]["function"], "__self__", None)
        made = super().function_after_schema(schema)
        return made | {"pattern": REFERENCE} if isinstance(kind, type) and issubclass(kind, Ref) else made

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:
        return {"type": "string"}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe. A value with a default may be null; so may a whole entry, which
    removes it from the recipe of `extends`."""
    definitions: dict[str, Any] = {}
    stages = {name: _settings(stage.settings, definitions, name) for name, stage in STAGES.items()}
    entry = {"models": _settings(ModelSpec, definitions, "model"), "data": _settings(DataSpec, definitions, "data")}
    head = _settings(RecipeHead, definitions, "head")
    top = definitions.pop(head["$ref"].rpartition("/")[2])
    entry["stages"] = _one_of(stages, definitions)
    sections = {name: {"additionalProperties": {"if": NULL, "else": spec}} for name, spec in entry.items()}
    for name, section in sections.items():
        top["properties"][name] = {"type": "object", "propertyNames": {"pattern": NAME}, **section}
    top["properties"]["extends"] = {"type": "string", "description": "a recipe that this one changes"}
    top["properties"]["track"] = {"anyOf": [top["properties"]["track"], {"type": "string"}]}
    top["required"] = []  # keys of the extended recipe need not be repeated
    typed = {"properties": {"stages": {"additionalProperties": {"required": ["type"]}}}}
    top |= {"if": {"required": ["extends"]}, "else": typed}
    return {"$schema": DIALECT, **top, "title": "togi recipe", "$defs": definitions}


def _settings(settings: Any, definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """A reference to the schema of a settings class; the schema and its nested ones are added to `definitions`."""
    prefix = f"{name}:"
    made = settings.model_json_schema(schema_generator=_Schema, ref_template="#/$defs/" + prefix + "{model}")
    for inner, value in {**made.pop("$defs", {}), "": made}.items():
        definitions[prefix + inner] = _nullable(value)
    return {"$ref": f"#/$defs/{prefix}"}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Allows null for a setting with a default: it means none, or the default."""
    required = schema.get("required", [])
    found = schema.get("properties", {})
    for name in found:
        if name not in required and name != "type":
            found[name] = {"anyOf": [found[name], NULL]}
    if "const" in found.get("type", {}) and "type" not in required:
        schema["required"] = [*required, "type"]
    return schema


def _one_of(stages: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a stage: its `type` decides its settings, so that errors mention only these. An entry without a
    type changes a stage of the extended recipe, and may have the settings of any stage."""
    kinds = {"properties": {"type": {"enum": list(stages)}}, "type": "object"}
    words = {word for settings in stages.values() for word in _of(settings, definitions)["properties"]}
    untyped = {"if": {"not": {"required": ["type"]}}, "then": {"propertyNames": {"enum": sorted(words)}}}
    chosen = [
        {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": settings}
        for name, settings in stages.items()
    ]
    return {**kinds, "allOf": [untyped, *chosen]}


def _of(reference: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference points to."""
    found: dict[str, Any] = definitions[reference["$ref"].removeprefix("#/$defs/")]
    return found
