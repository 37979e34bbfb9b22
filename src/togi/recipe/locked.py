"""Reads recipe.lock.yaml: the recipe of a run as it was resolved, and what a stage's output descends from in it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError

from togi.core.errors import InputError
from togi.core.settings import EngineRef, RecipePath, Ref, ingredients, walk
from togi.recipe.graph import made_by
from togi.recipe.schema import DataSpec, ModelSpec
from togi.stages.base import StageSettings
from togi.stages.table import STAGES

LOCK = "recipe.lock.yaml"
WEIGHTS = ("model", "scorer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """A resolved recipe: its models, its data, its stages (with the imports of its data), and the file's `values`."""

    models: Mapping[str, ModelSpec]
    data: Mapping[str, DataSpec]
    stages: Mapping[str, StageSettings]
    values: Mapping[str, Any]

    def target(self, ref: Ref) -> str:
        """The stage, data set or model that a reference leads to, also through `path: $stage` of a model."""
        spec = self.models.get(ref.name)
        made = None if spec is None else made_by(spec)
        return ref.name if made is None else made.name

    def trainings(self, stage: str) -> list[str]:
        """The stages that trained the model of `stage`, one after the other, up to `stage` itself."""
        found = [stage]
        while (start := self._start(found[0])) in self.stages:
            found.insert(0, start)
        return found

    def root(self, stage: str) -> str:
        """The entry of `models:` that the model of `stage` was trained from; empty if it is from no other model."""
        return self._start(self.trainings(stage)[0])

    def _start(self, stage: str) -> str:
        init = getattr(self.stages[stage], "init", None)
        return self.target(init) if isinstance(init, Ref) else ""

    def models_in(self, stage: str) -> list[str]:
        """The entries of `models:` that may have become part of a stage's output: models that wrote its records, and,
        if it trains, the models that it started from and learnt from."""
        seen: dict[str, None] = {}
        return list(dict.fromkeys(self._models_in(stage, seen)))

    def _models_in(self, stage: str, seen: dict[str, None]) -> Iterator[str]:
        if stage in seen:
            return
        seen[stage] = None
        settings = self.stages[stage]
        counted = WEIGHTS if STAGES[settings.type].job is not None else ("model",)
        for ref in ingredients(settings):
            target = self.target(ref)
            if isinstance(ref, EngineRef) or not ({*counted} & {*ref.kinds} or is_records(ref)):
                continue  # the server of an engine has the weights of the model in training
            if target in self.stages:
                yield from self._models_in(target, seen)
            elif target in self.models:
                yield target

    def paths(self) -> dict[str, RecipePath]:
        """Every path that the recipe names, by its text."""
        parts = [*self.models.values(), *self.data.values(), *self.stages.values()]
        leaves = [leaf for part in parts for _, leaf in walk(part)]
        return {str(leaf): leaf for leaf in leaves if isinstance(leaf, RecipePath)}


def is_records(ref: Ref) -> bool:
    """Whether a reference is to records, not to a model."""
    return not {*WEIGHTS, "embedder"} & {*ref.kinds}


def read_lock(run: Path) -> Locked:
    """The resolved recipe of a run. Raises InputError if it is missing or damaged, or of another version of togi."""
    path = run / LOCK
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return Locked(
            models={name: ModelSpec.model_validate(entry) for name, entry in values["models"].items()},
            data={name: DataSpec.model_validate(entry) for name, entry in values["data"].items()},
            stages={name: _settings(entry) for name, entry in values["stages"].items()},
            values=values,
        )
    except (OSError, UnicodeDecodeError, YAMLError, ValidationError, KeyError, TypeError, AttributeError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read by this version of togi"
        raise InputError(
            f"{path}: {what}; run the recipe again: it finds the finished work and writes the file again"
        ) from None


def _settings(entry: Mapping[str, Any]) -> StageSettings:
    values = {key: value for key, value in entry.items() if key != "fingerprint"}
    return STAGES[entry["type"]].settings.model_validate(values)
